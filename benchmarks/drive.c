/* The generator of versus.py: many sockets, one thread, every reply checked, the server's CPU time read on the spot.
 *
 * It is in C so that it outruns every server it is to compare: a generator that is slower than the server measures
 * itself. (load.py is the tool for users; this one has no comforts, and versus.py is its only caller.)
 *
 * The payload is M messages, each ending in LF, and the M replies that are right for them. Both are laid out twice in a row, so a
 * batch that begins at any message is one contiguous slice: sending it is one send, checking its replies is one memcmp.
 *
 * Modes
 *   closed  each connection sends a batch of --depth messages, waits for all the replies, sends the next batch.
 *           (A window that is refilled reply by reply would give each server other chunks to read, by the way it sends.)
 *   open    messages are sent at moments drawn from a Poisson process of --rate a second, whatever the replies do;
 *           latency counts from the moment a message was due.
 *   churn   --connections slots, each: connect, send --depth messages, read the replies, close, again.
 *
 * Built with TLS (drive_tls.h), --tls has all of it go through that: the messages of one send are one record, or with --records
 * a record each; with --resume each connection of churn goes on with the session of the one before.
 *
 * It never sleeps: it polls. A generator that sleeps must be woken by the server's send, and the server pays for that, the
 * more often the faster it is. So it needs a core of its own.
 *
 * The result is one line of JSON on stdout. Exit 1 with one line on stderr if a reply is wrong or missing.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#ifdef WITH_TLS
#include <openssl/ssl.h>
#endif

#define EVENTS 1024
#define RECV_BYTES 262144
#define STALL_NS 10000000000u /* nothing arrives for this long: the server is stuck */
#define DUE_RING 1024         /* open loop: messages in flight on one connection; more means the server is overrun */
#define SOURCE_ADDRESSES 250  /* churn: client addresses, so that ports in TIME_WAIT don't run out */

enum mode { CLOSED, OPEN_LOOP, CHURN };

static struct {
    int port, connections, depth, idle, tls, records, resume;
    double warmup_s, duration_s, rate;
    uint64_t seed;
    pid_t server_pid;
    const char *payload_path, *replies_path;
    enum mode mode;
} opt = {.connections = 1, .depth = 1, .warmup_s = 0.3, .duration_s = 1, .rate = 1000, .seed = 1};

static void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fprintf(stderr, "drive: ");
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    exit(1);
}

static uint64_t clock_ns(clockid_t clock) {
    struct timespec now;
    if (clock_gettime(clock, &now) != 0)
        die("cannot read a clock: %s (has the server gone?)", strerror(errno));
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

/* ---------------------------------------------------------------- payload */

static struct {
    char *bytes;     /* the M items twice */
    size_t *offset;  /* of item i, for i in 0..2M */
    int count;       /* M */
} messages, replies;

static void load_lines(const char *path, char **bytes, size_t **offset, int *count) {
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        die("%s: %s", path, strerror(errno));
    fseek(file, 0, SEEK_END);
    size_t size = (size_t)ftell(file);
    rewind(file);
    *bytes = malloc(2 * size + 1);
    if (fread(*bytes, 1, size, file) != size || size == 0 || (*bytes)[size - 1] != '\n')
        die("%s: must be lines that end in LF", path);
    fclose(file);
    memcpy(*bytes + size, *bytes, size);
    int lines = 0;
    for (size_t i = 0; i < size; i++)
        lines += (*bytes)[i] == '\n';
    *count = lines;
    *offset = malloc((2 * (size_t)lines + 1) * sizeof **offset);
    size_t item = 0;
    (*offset)[0] = 0;
    for (size_t i = 0; i < 2 * size; i++)
        if ((*bytes)[i] == '\n')
            (*offset)[++item] = i + 1;
}

/* ---------------------------------------------------------------- latency histogram: 64 buckets per power of two */

#define SUB_BITS 6
static uint64_t histogram[(64 - SUB_BITS + 1) << SUB_BITS], max_latency_ns, recorded;

static void record(uint64_t latency_ns) {
    int shift = latency_ns >> SUB_BITS ? 63 - __builtin_clzll(latency_ns) - SUB_BITS + 1 : 0;
    uint64_t sub = latency_ns >> (shift > 1 ? shift - 1 : 0);
    size_t bucket = shift == 0 ? latency_ns : ((size_t)shift << SUB_BITS) + (sub & ((1u << SUB_BITS) - 1));
    histogram[bucket]++;
    recorded++;
    if (latency_ns > max_latency_ns)
        max_latency_ns = latency_ns;
}

/* The upper end of the bucket that holds the given share of all values, in microseconds. */
static double percentile_us(double share) {
    uint64_t rank = (uint64_t)ceil(share * (double)recorded), seen = 0;
    for (size_t bucket = 0; bucket < sizeof histogram / sizeof *histogram; bucket++) {
        seen += histogram[bucket];
        if (seen >= rank && seen > 0) {
            size_t shift = bucket >> SUB_BITS, sub = bucket & ((1u << SUB_BITS) - 1);
            double value = shift == 0 ? (double)bucket
                                      : ldexp((double)((1u << SUB_BITS) + sub + 1), (int)shift - 1);
            return fmin(value, (double)max_latency_ns) / 1000;
        }
    }
    return 0;
}

/* ---------------------------------------------------------------- connections */

struct conn {
    int fd;
    int next_message, next_reply; /* in 0..M-1 */
    int outstanding;
    size_t send_from, send_to;    /* unsent slice of the messages */
    size_t reply_from;            /* next expected byte of the replies */
    uint64_t sent_ns;             /* closed, churn: when the batch was sent */
    uint64_t *due;                /* open: ring of the moments the messages in flight were due */
    unsigned due_head;
#ifdef WITH_TLS
    SSL *ssl;                     /* NULL without TLS */
    SSL_SESSION *session;         /* for the next connection */
    size_t pushed;                /* so much of what TLS has to send is sent */
#endif
};

static struct conn *conns;
static int epoll_fd;
static uint64_t replies_seen, connections_done;
static char received[RECV_BYTES];

static uint64_t random_state;
static uint64_t random_u64(void) { /* splitmix64 */
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
static double random_unit(void) { return ((double)(random_u64() >> 11) + 0.5) * 0x1p-53; }

static int connect_one(unsigned source) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    if (fd < 0)
        die("socket: %s", strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (source) {
        struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000001u + source)};
        setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
        if (bind(fd, (struct sockaddr *)&from, sizeof from) != 0)
            die("bind: %s", strerror(errno));
    }
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)opt.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (connect(fd, (struct sockaddr *)&to, sizeof to) != 0)
        die("connect: %s", strerror(errno));
    return fd;
}

static void watch(struct conn *conn) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = conn};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, conn->fd, &event) != 0)
        die("epoll_ctl: %s", strerror(errno));
}

#ifdef WITH_TLS
#include "drive_tls.h"
#endif

/* What TLS changes, told apart here alone. */

static void open_conn(struct conn *conn, unsigned source) {
    conn->fd = connect_one(source);
#ifdef WITH_TLS
    if (opt.tls)
        tls_open(conn);
#endif
}

static ssize_t receive(struct conn *conn, char *buffer, size_t size) {
#ifdef WITH_TLS
    if (opt.tls)
        return tls_recv(conn, buffer, size);
#endif
    return recv(conn->fd, buffer, size, MSG_DONTWAIT);
}

static void close_conn(struct conn *conn) {
#ifdef WITH_TLS
    if (opt.tls)
        tls_close(conn);
#endif
    close(conn->fd);
}

static void send_some(struct conn *conn) {
#ifdef WITH_TLS
    if (opt.tls) {
        tls_send_some(conn);
        return;
    }
#endif
    while (conn->send_from < conn->send_to) {
        ssize_t sent = send(conn->fd, messages.bytes + conn->send_from, conn->send_to - conn->send_from,
                            MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EAGAIN)
                return; /* an EPOLLOUT event brings us back */
            die("send: %s", strerror(errno));
        }
        conn->send_from += (size_t)sent;
    }
}

/* Let `count` more messages be sent. */
static void extend(struct conn *conn, int count) {
    if (conn->next_message >= messages.count && conn->send_from >= messages.offset[messages.count]) {
        conn->next_message -= messages.count;
        conn->send_from -= messages.offset[messages.count];
    }
    conn->next_message += count;
    conn->send_to = messages.offset[conn->next_message];
    conn->outstanding += count;
}

static void begin_batch(struct conn *conn) {
    extend(conn, opt.depth);
    conn->sent_ns = now_ns();
    send_some(conn);
}

/* Read what is there and check it. Returns the number of messages still in flight. */
static int read_replies(struct conn *conn, uint64_t event_ns) {
    for (;;) {
        ssize_t size = receive(conn, received, sizeof received);
        if (size < 0) {
            if (errno == EAGAIN)
                return conn->outstanding;
            die("recv: %s", strerror(errno));
        }
        if (size == 0)
            die("the server closed a connection with %d replies missing", conn->outstanding);
        size_t end = replies.offset[conn->next_reply + conn->outstanding];
        if ((size_t)size > end - conn->reply_from || memcmp(received, replies.bytes + conn->reply_from, (size_t)size))
            die("wrong reply: expected %.40s, got %.*s", replies.bytes + conn->reply_from, (int)(size < 40 ? size : 40),
                received);
        conn->reply_from += (size_t)size;
        while (conn->outstanding && replies.offset[conn->next_reply + 1] <= conn->reply_from) {
            record(event_ns - (opt.mode == OPEN_LOOP ? conn->due[conn->due_head++ % DUE_RING] : conn->sent_ns));
            conn->next_reply++;
            conn->outstanding--;
            replies_seen++;
        }
        if (conn->next_reply >= replies.count) {
            conn->next_reply -= replies.count;
            conn->reply_from -= replies.offset[replies.count];
        }
        if ((size_t)size < sizeof received && !opt.tls) /* there may be more records */
            return conn->outstanding;
    }
}

static void start_at_random_message(struct conn *conn) {
    conn->next_message = conn->next_reply = (int)(random_u64() % (uint64_t)messages.count);
    conn->send_from = conn->send_to = messages.offset[conn->next_message];
    conn->reply_from = replies.offset[conn->next_reply];
    conn->outstanding = 0;
}

/* Ask one message and wait for the reply: after it the server is known to have accepted the connection. */
static void greet(struct conn *conn) {
    extend(conn, 1);
    conn->sent_ns = now_ns();
    if (opt.mode == OPEN_LOOP)
        conn->due[conn->due_head % DUE_RING] = conn->sent_ns;
    for (uint64_t start = now_ns(); conn->outstanding;) {
        send_some(conn);
        read_replies(conn, now_ns());
        if (now_ns() - start > STALL_NS)
            die("no reply on a new connection");
    }
}

static void connect_slot(struct conn *conn) {
    static unsigned source;
    source = source % SOURCE_ADDRESSES + 1;
    open_conn(conn, source);
    watch(conn);
    begin_batch(conn);
}

/* ---------------------------------------------------------------- the run */

static clockid_t server_clock;

struct snapshot {
    uint64_t at_ns, server_cpu_ns, own_cpu_ns, replies, connections;
    double server_user_s, server_system_s;
};

/* User and system time of the server in clock ticks: coarse, and only used to tell one share from the other. */
static void read_ticks(double *user_s, double *system_s) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)opt.server_pid);
    FILE *file = fopen(path, "r");
    size_t size = file ? fread(text, 1, sizeof text - 1, file) : 0;
    if (file)
        fclose(file);
    text[size] = 0;
    char *field = strrchr(text, ')');
    unsigned long user = 0, system = 0;
    if (field == NULL ||
        sscanf(field + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system) != 2)
        die("cannot read %s", path);
    *user_s = (double)user / (double)sysconf(_SC_CLK_TCK);
    *system_s = (double)system / (double)sysconf(_SC_CLK_TCK);
}

static struct snapshot take_snapshot(void) {
    struct snapshot s = {.replies = replies_seen, .connections = connections_done};
    read_ticks(&s.server_user_s, &s.server_system_s);
    s.own_cpu_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    s.server_cpu_ns = clock_ns(server_clock);
    s.at_ns = now_ns();
    return s;
}

static uint64_t next_due_ns;

static void send_due(uint64_t now) {
    while (next_due_ns <= now) {
        struct conn *conn = &conns[random_u64() % (uint64_t)opt.connections];
        if (conn->outstanding >= DUE_RING || conn->outstanding >= messages.count - 1)
            die("overrun: %d messages in flight on one connection; the rate is too high for this server",
                conn->outstanding);
        conn->due[(conn->due_head + (unsigned)conn->outstanding) % DUE_RING] = next_due_ns;
        extend(conn, 1);
        send_some(conn);
        next_due_ns += (uint64_t)(-log(random_unit()) / opt.rate * 1e9);
    }
}

static void run_until(uint64_t end_ns) {
    static struct epoll_event events[EVENTS];
    uint64_t now = now_ns(), last_event_ns = now;
    while (now < end_ns) {
        int count = epoll_wait(epoll_fd, events, EVENTS, 0);
        now = now_ns();
        for (int i = 0; i < count; i++) {
            struct conn *conn = events[i].data.ptr;
            send_some(conn);
            if (events[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
                while (read_replies(conn, now_ns()) >= 0)
                    ; /* ends in an error: no server has a reason to end a connection */
            }
            if (!(events[i].events & EPOLLIN))
                continue;
            if (opt.mode != CLOSED)
                now = now_ns();
            if (read_replies(conn, opt.mode == CLOSED ? now_ns() : now) || opt.mode == OPEN_LOOP)
                continue;
            if (opt.mode == CHURN) {
                close_conn(conn);
                connections_done++;
                connect_slot(conn);
            } else {
                begin_batch(conn);
            }
        }
        if (count > 0)
            last_event_ns = now;
        if (opt.mode == OPEN_LOOP)
            send_due(now_ns());
        if (now - last_event_ns > STALL_NS)
            die("no reply for %.0f s", STALL_NS / 1e9);
    }
}

static void parse_arguments(int argc, char **argv) {
    static const struct option options[] = {
        {"port", 1, 0, 'p'},        {"connections", 1, 0, 'c'}, {"depth", 1, 0, 'd'},    {"idle", 1, 0, 'i'},
        {"warmup-s", 1, 0, 'w'},    {"duration-s", 1, 0, 't'},  {"rate", 1, 0, 'r'},     {"seed", 1, 0, 's'},
        {"server-pid", 1, 0, 'P'},  {"payload", 1, 0, 'f'},     {"replies", 1, 0, 'F'},  {"mode", 1, 0, 'm'},
        {"tls", 0, &opt.tls, 1},    {"records", 0, &opt.records, 1}, {"resume", 0, &opt.resume, 1},
        {0, 0, 0, 0}};
    for (int flag; (flag = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (flag) {
        case 0: break; /* a switch: getopt has set it */
        case 'p': opt.port = atoi(optarg); break;
        case 'c': opt.connections = atoi(optarg); break;
        case 'd': opt.depth = atoi(optarg); break;
        case 'i': opt.idle = atoi(optarg); break;
        case 'w': opt.warmup_s = atof(optarg); break;
        case 't': opt.duration_s = atof(optarg); break;
        case 'r': opt.rate = atof(optarg); break;
        case 's': opt.seed = strtoull(optarg, NULL, 10); break;
        case 'P': opt.server_pid = atoi(optarg); break;
        case 'f': opt.payload_path = optarg; break;
        case 'F': opt.replies_path = optarg; break;
        case 'm':
            opt.mode = !strcmp(optarg, "open") ? OPEN_LOOP : !strcmp(optarg, "churn") ? CHURN : CLOSED;
            break;
        default: exit(2);
        }
    }
    if (!opt.port || !opt.server_pid || !opt.payload_path || !opt.replies_path || opt.connections < 1 || opt.depth < 1) {
        fprintf(stderr, "drive: --port, --server-pid, --payload and --replies are needed\n");
        exit(2);
    }
}

int main(int argc, char **argv) {
    parse_arguments(argc, argv);
    random_state = opt.seed;
    load_lines(opt.payload_path, &messages.bytes, &messages.offset, &messages.count);
    load_lines(opt.replies_path, &replies.bytes, &replies.offset, &replies.count);
    if (messages.count != replies.count || messages.count < opt.depth)
        die("needs as many replies as messages, and at least as many as --depth");
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    int error = clock_getcpuclockid(opt.server_pid, &server_clock);
    if (error)
        die("process %d: %s", (int)opt.server_pid, strerror(error));
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (opt.tls) {
#ifdef WITH_TLS
        tls_prepare();
#else
        die("built without TLS");
#endif
    }

    conns = calloc((size_t)opt.connections, sizeof *conns);
    for (int i = 0; i < opt.connections; i++) {
        start_at_random_message(&conns[i]);
        if (opt.mode == CHURN && !opt.resume)
            continue;
        if (opt.mode == OPEN_LOOP)
            conns[i].due = malloc(DUE_RING * sizeof *conns[i].due);
        open_conn(&conns[i], 0);
        greet(&conns[i]);
        if (opt.mode == CHURN) /* with a session now, as the tickets come before the first reply */
            close_conn(&conns[i]);
    }
    for (int i = 0; i < opt.idle; i++) {
        struct conn idle = {.due = opt.mode == OPEN_LOOP ? conns[0].due : NULL};
        start_at_random_message(&idle);
        open_conn(&idle, 0);
        greet(&idle);
    }
    for (int i = 0; i < opt.connections; i++) {
        if (opt.mode == CHURN) {
            connect_slot(&conns[i]);
            continue;
        }
        watch(&conns[i]);
        if (opt.mode == CLOSED)
            begin_batch(&conns[i]);
    }

    next_due_ns = now_ns();
    run_until(now_ns() + (uint64_t)(opt.warmup_s * 1e9));
    memset(histogram, 0, sizeof histogram);
    recorded = max_latency_ns = 0;
    struct snapshot a = take_snapshot();
    run_until(a.at_ns + (uint64_t)(opt.duration_s * 1e9));
    struct snapshot b = take_snapshot();

    double seconds = (double)(b.at_ns - a.at_ns) / 1e9;
    printf("{\"messages\": %llu, \"connections_done\": %llu, \"seconds\": %.6f, \"server_cpu_s\": %.9f, "
           "\"server_user_s\": %.2f, \"server_system_s\": %.2f, \"generator_cpu_s\": %.6f, "
           "\"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, \"max_us\": %.1f}\n",
           (unsigned long long)(b.replies - a.replies), (unsigned long long)(b.connections - a.connections), seconds,
           (double)(b.server_cpu_ns - a.server_cpu_ns) / 1e9, b.server_user_s - a.server_user_s,
           b.server_system_s - a.server_system_s, (double)(b.own_cpu_ns - a.own_cpu_ns) / 1e9, percentile_us(0.5),
           percentile_us(0.99), percentile_us(0.999), (double)max_latency_ns / 1000);
    return 0;
}
