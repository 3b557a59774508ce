"""The command line of ``benchmarks/load.py``."""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass

from evloop.charcount.connecting import to_connect_to
from evloop.errors import EndpointError
from evloop.net.endpoint import TcpEndpoint, UnixEndpoint, parse_endpoint
from evloop_bench.common.arguments import Parser, natural, positive, rate, seconds, seconds_or_none
from evloop_bench.common.texts import ALPHABETS
from evloop_bench.loadgen.asserts import AssertionSyntaxError, Condition, parse_condition
from evloop_bench.loadgen.settings import Settings
from evloop_bench.loadgen.workload import SizeError, parse_sizes

_LOCAL = ("127.0.0.1", "localhost", "::1")

EPILOG = """\
Numbers may end in k or M, times in ms, s, m or h (without: seconds).

Exit status: 0 fine; 1 a reply was wrong or missing, a connection failed, or an
--assert does not hold; 2 wrong usage; 3 the run could not take place; 4
INVALID: the numbers can't be trusted, the reason is printed; 5 a result could
not be written to its file or to stdout; 6 the bench extra is not installed; 130
interrupted.
"""

EXAMPLES = (
    ("{program}", "this project's own server, 300 connections, for 5 seconds"),
    ("{program} --server 127.0.0.1:8000 --rate 20k --html page.html", "one that runs already, at a rate"),
    ("{program} compare before.json after.json", "which is faster, and how sure that is (from --repeat 5 --json)"),
)


@dataclass(frozen=True)
class Options:
    """What was asked for, beyond the settings of one run."""

    settings: Settings
    server: TcpEndpoint | UnixEndpoint | None
    spawn: str | None
    server_log: str | None
    pin: bool | None
    repeat: int
    calibrate: bool
    json: str | None
    csv: str | None
    hgrm: str | None
    html: str | None
    conditions: list[Condition]


def make_parser(program: str = "load.py") -> Parser:
    """The parser of a run's arguments."""
    defaults = Settings()
    parser = Parser(
        prog=program,
        description="Drive a character-count server, check every reply, and say what it cost.\n"
        "Without arguments: the project's own server, 300 connections, 5 seconds.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.examples = tuple((command.format(program=program), what) for command, what in EXAMPLES)
    parser.documentation = "docs/benchmarking.md says what each number means"
    load = parser.add_argument_group("load")
    load.add_argument(
        "--connections",
        "-c",
        type=natural,
        default=defaults.connections,
        metavar="N",
        help="sockets that send (default: %(default)s)",
    )
    load.add_argument(
        "--pipeline",
        type=positive,
        default=defaults.pipeline,
        metavar="N",
        help="closed loop: messages that each keeps in flight (default: %(default)s)",
    )
    load.add_argument(
        "--rate",
        type=rate,
        metavar="R",
        help="open loop: so many messages a second in total, whatever the server does (default: closed loop)",
    )
    load.add_argument(
        "--arrivals",
        choices=("poisson", "uniform"),
        default=defaults.arrivals,
        help="how an open loop's messages are spread (default: %(default)s)",
    )
    load.add_argument(
        "--churn",
        action="store_true",
        help="connect, ask, close, again and again; with --rate so many connections a second",
    )
    load.add_argument(
        "--idle", type=natural, default=0, metavar="N", help="silent sockets beside the active ones (default: 0)"
    )
    load.add_argument(
        "--duration",
        "-d",
        type=seconds,
        default=defaults.duration_s,
        metavar="S",
        help="measured seconds (default: %(default)g)",
    )
    load.add_argument("--messages", "-n", type=positive, metavar="N", help="measure so many messages instead")
    load.add_argument(
        "--warmup",
        type=seconds_or_none,
        default=defaults.warmup_s,
        metavar="S",
        help="seconds before that, not counted (default: %(default)g)",
    )
    load.add_argument(
        "--ramp",
        type=rate,
        default=defaults.ramp_per_s,
        metavar="R",
        help="connects per second (default: %(default)g)",
    )
    load.add_argument(
        "--timeout",
        type=seconds,
        default=defaults.timeout_s,
        metavar="S",
        help="a reply that takes longer is an error (default: %(default)g)",
    )
    load.add_argument(
        "--seed", type=natural, metavar="N", help="of messages and arrivals (default: a new one, which is reported)"
    )
    text = parser.add_argument_group("messages")
    text.add_argument(
        "--size",
        type=_sizes,
        default=defaults.size,
        metavar="SIZE",
        help="bytes without the newline: 32, uniform:8-200 or lognormal:MEDIAN,SIGMA (default: %(default)s)",
    )
    text.add_argument(
        "--text", choices=tuple(ALPHABETS), default=defaults.text, help="of which characters (default: %(default)s)"
    )
    server = parser.add_argument_group("server")
    where = server.add_mutually_exclusive_group()
    where.add_argument(
        "--server",
        type=_endpoint,
        metavar="ENDPOINT",
        help="one that runs already: HOST:PORT or unix:PATH, tls: in front",
    )
    where.add_argument(
        "--spawn", metavar="COMMAND", help="start this one; {port} stands for its port (default: bin/charcount-server)"
    )
    where.add_argument(
        "--calibrate", action="store_true", help="measure the harness's own ceiling, against a server that does nothing"
    )
    server.add_argument("--server-log", metavar="FILE", help="where the output of the started server goes")
    server.add_argument(
        "--pin",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="server on the first core, generators on the others (default: if the server is started here)",
    )
    server.add_argument(
        "--processes", type=positive, default=1, metavar="N", help="generator processes (default: %(default)s)"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--repeat",
        type=positive,
        default=1,
        metavar="N",
        help="runs, each with a fresh server and the next seed, and a summary of them (default: 1)",
    )
    output.add_argument(
        "--assert",
        dest="conditions",
        type=_condition,
        action="append",
        default=[],
        metavar="CONDITION",
        help="exit 1 unless it holds for each run: 'p99<10ms', 'errors==0', 'throughput>50k'",
    )
    output.add_argument("--json", metavar="FILE", help="everything")
    output.add_argument("--csv", metavar="FILE", help="throughput, latency, CPU and memory over time")
    output.add_argument("--hgrm", metavar="FILE", help="the latency distribution, as HdrHistogram plotters read it")
    output.add_argument("--html", metavar="FILE", help="one self-contained page with plots")
    return parser


def make_compare_parser(program: str) -> Parser:
    """The parser of the arguments of ``compare``."""
    parser = Parser(
        prog=f"{program} compare",
        description="Which of two is faster, by how much, and how sure that is: bootstrapped over runs.",
        epilog=f"Each side is a file written by {program} --json (best with --repeat 5), several of them separated "
        "by commas, or a directory of them. Exit status: 0 compared; 2 wrong usage; 3 can't be compared; 5 stdout "
        "did not take the answer; 130 interrupted.",
    )
    parser.add_argument("a", metavar="A.json")
    parser.add_argument("b", metavar="B.json")
    parser.add_argument(
        "--force", action="store_true", help="compare runs that are INVALID, or of different settings, all the same"
    )
    return parser


def parse_options(argv: list[str], program: str = "load.py") -> Options:
    """Options from arguments. Ends the process with status 2 if they make no sense."""
    parser = make_parser(program)
    args = parser.parse_args(argv)
    if args.connections == 0 and args.idle == 0:
        parser.error("--connections 0 without --idle leaves nothing to do")
    if args.connections == 0 and (args.messages is not None or args.churn or args.rate is not None or args.calibrate):
        parser.error("--connections 0 sends nothing: leave out --messages, --rate, --churn and --calibrate")
    if args.processes > max(args.connections, args.idle):
        parser.error("more --processes than connections")
    if args.messages is not None and args.messages < args.processes:
        parser.error("more --processes than messages")
    if args.rate is not None and args.pipeline > 1 and not args.churn:
        parser.error("--pipeline is of the closed loop: an open loop (--rate) sends when it is time")
    if args.spawn is not None and "{port}" not in args.spawn:
        parser.error("--spawn needs {port} in the command, where the number of the port goes")
    if args.server is not None and args.server_log is not None:
        parser.error("--server-log is of a server that is started here")
    if args.pin is True and isinstance(args.server, TcpEndpoint) and args.server.host not in _LOCAL:
        parser.error("--pin needs a server on this machine")
    settings = Settings(
        connections=args.connections,
        idle=args.idle,
        pipeline=args.pipeline,
        rate_per_s=args.rate,
        arrivals=args.arrivals,
        duration_s=args.duration,
        warmup_s=args.warmup,
        messages=args.messages,
        ramp_per_s=args.ramp,
        size=args.size,
        text=args.text,
        churn=args.churn,
        processes=args.processes,
        seed=random.SystemRandom().randrange(1, 1_000_000) if args.seed is None else args.seed,
        timeout_s=args.timeout,
        null=args.calibrate,
    )
    return Options(
        settings=settings,
        server=args.server,
        spawn=args.spawn,
        server_log=args.server_log,
        pin=args.pin,
        repeat=args.repeat,
        calibrate=args.calibrate,
        json=args.json,
        csv=args.csv,
        hgrm=args.hgrm,
        html=args.html,
        conditions=args.conditions,
    )


def _endpoint(text: str) -> TcpEndpoint | UnixEndpoint:
    try:
        return to_connect_to(parse_endpoint(text))
    except EndpointError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _sizes(text: str) -> str:
    try:
        parse_sizes(text)
    except SizeError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _condition(text: str) -> Condition:
    try:
        return parse_condition(text)
    except AssertionSyntaxError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
