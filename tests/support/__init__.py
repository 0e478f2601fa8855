"""What tests share: tiny models and checkpoints, made-up studies, servers, and processes to run things in."""
