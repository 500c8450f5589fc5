"""What :mod:`invflow.backends.triton.compile_report` is made of; nothing else imports it."""
