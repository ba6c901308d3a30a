"""The measurements and reports of `whisper-npu wer`."""
