"""What `whisper-npu wer` measures and prints."""
