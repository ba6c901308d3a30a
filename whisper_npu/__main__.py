"""`python -m whisper_npu` is the console command `whisper-npu`."""

from whisper_npu.scripts.main import program

if __name__ == "__main__":
    program()
