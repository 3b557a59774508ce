"""An SMTP server that delivers nothing: it prints the mails it gets. What `smtpd`'s debugging server was.

Teaches: a protocol of commands and answers, with a part in the middle that is read differently; limits and time-outs
where a conversation needs them.

    python examples/smtp_sink.py 8025
    swaks --server 127.0.0.1:8025 --to someone@example.org
"""

import sys

from evloop import LimitError, Stream, serve, timeout

MAX_MAIL_BYTES = 10 * 1024 * 1024
COMMAND_TIMEOUT_S = 300  # what RFC 5321 recommends


async def read_mail(stream: Stream) -> bytes:
    """The lines up to a single dot, without the dots that were put before lines with dots."""
    lines: list[bytes] = []
    size = 0
    async for line in stream.lines():
        if line == b".":
            break
        size += len(line) + 1
        if size > MAX_MAIL_BYTES:
            raise LimitError("mail", f"a mail of more than {MAX_MAIL_BYTES} bytes")
        lines.append(line.removeprefix(b"."))
    return b"\n".join(lines) + b"\n"


async def smtp(stream: Stream) -> None:
    sender = ""
    recipients: list[str] = []
    lines = stream.lines()
    stream.write(b"220 evloop sink, nothing is delivered\r\n")
    while True:
        try:
            async with timeout(COMMAND_TIMEOUT_S):
                line = await anext(lines)
        except TimeoutError:
            stream.write(b"421 too slow\r\n")
            return
        except StopAsyncIteration:
            return
        verb, _, argument = line.decode(errors="replace").partition(" ")
        verb = verb.upper()
        if verb == "QUIT":
            stream.write(b"221 bye\r\n")
            return
        elif verb == "EHLO":
            stream.write(b"250-evloop\r\n250-8BITMIME\r\n250 SIZE %d\r\n" % MAX_MAIL_BYTES)
        elif verb in ("HELO", "NOOP"):
            stream.write(b"250 evloop\r\n")
        elif verb == "RSET":
            sender, recipients = "", []
            stream.write(b"250 forgotten\r\n")
        elif verb == "MAIL" and argument.upper().startswith("FROM:"):
            sender = argument[5:].split(" ")[0]
            stream.write(b"250 ok\r\n")
        elif verb == "RCPT" and argument.upper().startswith("TO:") and sender:
            recipients.append(argument[3:].strip())
            stream.write(b"250 ok\r\n")
        elif verb == "DATA" and recipients:
            stream.write(b"354 end with a dot on a line\r\n")
            mail = await read_mail(stream)
            print(f"from {sender} to {', '.join(recipients)}\n{mail.decode(errors='replace')}", flush=True)
            sender, recipients = "", []
            stream.write(b"250 printed\r\n")
        elif verb in ("MAIL", "RCPT", "DATA"):
            stream.write(b"503 not now\r\n")
        else:
            stream.write(b"502 not here\r\n")


if __name__ == "__main__":
    serve(smtp, port=int(sys.argv[1]) if len(sys.argv) > 1 else 8025)
