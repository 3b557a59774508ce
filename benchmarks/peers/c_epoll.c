/* The practical limit: the same service in bare C on level-triggered epoll. One recv and one send per ready connection.
 *
 * Counting checks UTF-8 as Python's decoder does (no overlong forms, no surrogates, nothing beyond U+10FFFF), a word at a time
 * while the text is ASCII. State per connection is 32 bytes; replies that the kernel does not take are kept, and the
 * connection is not read until they have left.
 *
 * Usage: c_epoll PORT (0 picks one). Prints the address it listens on.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define EVENTS 1024
#define BACKLOG 4096
#define RECV_BYTES 65536
#define REPLY_BYTES_PER_RECEIVED 16 /* the worst: an error reply of 27 bytes to a message of two */

struct conn {
    uint64_t characters, size; /* of the message that has begun; size in bytes */
    char *unsent;              /* allocated; NULL when all is sent */
    uint32_t unsent_size;
    uint8_t need, low, high;   /* continuation bytes still to come, and the range of the next one */
    uint8_t flags;
};

enum { ENDS_IN_CR = 1, INVALID = 2, BEGUN = 4, PEER_ENDED = 8 };

/* Where each connection's message became invalid is rare enough to live apart. */
static uint64_t *invalid_at;
static struct conn *conns;
static int epoll_fd;
static char received[RECV_BYTES], replies[RECV_BYTES * REPLY_BYTES_PER_RECEIVED];

static void become_invalid(struct conn *conn, uint64_t at) {
    conn->flags |= INVALID;
    conn->need = 0;
    invalid_at[conn - conns] = at;
}

/* Count a piece of a message. */
static void count(struct conn *conn, const uint8_t *p, size_t size) {
    const uint8_t *end = p + size;
    uint64_t at = conn->size; /* offset of p in the message */
    conn->size += size;
    if (conn->flags & INVALID)
        return;
    while (p < end) {
        if (conn->need == 0) {
            const uint8_t *start = p;
            uint64_t word;
            while (end - p >= 8 && (memcpy(&word, p, 8), !(word & 0x8080808080808080u)))
                p += 8;
            while (p < end && *p < 0x80)
                p++;
            conn->characters += (uint64_t)(p - start);
            at += (uint64_t)(p - start);
            if (p == end)
                return;
            uint8_t lead = *p++;
            at++;
            conn->low = 0x80;
            conn->high = 0xbf;
            if (lead >= 0xc2 && lead <= 0xdf) {
                conn->need = 1;
            } else if (lead >= 0xe0 && lead <= 0xef) {
                conn->need = 2;
                if (lead == 0xe0)
                    conn->low = 0xa0;
                else if (lead == 0xed)
                    conn->high = 0x9f;
            } else if (lead >= 0xf0 && lead <= 0xf4) {
                conn->need = 3;
                if (lead == 0xf0)
                    conn->low = 0x90;
                else if (lead == 0xf4)
                    conn->high = 0x8f;
            } else {
                become_invalid(conn, at - 1);
                return;
            }
            invalid_at[conn - conns] = at - 1; /* where it will have been invalid if it turns out so */
        } else if (*p >= conn->low && *p <= conn->high) {
            p++;
            at++;
            conn->low = 0x80;
            conn->high = 0xbf;
            conn->characters += --conn->need == 0;
        } else {
            become_invalid(conn, invalid_at[conn - conns]);
            return;
        }
    }
}

static char *put_number(char *out, uint64_t number) {
    char digits[20];
    int length = 0;
    do {
        digits[length++] = (char)('0' + number % 10);
        number /= 10;
    } while (number);
    while (length)
        *out++ = digits[--length];
    return out;
}

/* End the message: write its reply. */
static char *finish(struct conn *conn, char *out) {
    if (conn->need)
        become_invalid(conn, invalid_at[conn - conns]);
    if (conn->flags & INVALID) {
        out = mempcpy(out, "ERR invalid-utf8 at byte ", 25);
        out = put_number(out, invalid_at[conn - conns]);
    } else {
        out = put_number(out, conn->characters);
    }
    *out++ = '\n';
    conn->characters = conn->size = 0;
    conn->flags &= PEER_ENDED;
    return out;
}

/* Answer what ends in a received chunk. */
static char *answer(struct conn *conn, const char *p, const char *end, char *out) {
    while (p < end) {
        const char *newline = memchr(p, '\n', (size_t)(end - p));
        const char *stop = newline ? newline : end;
        conn->flags |= BEGUN;
        if (stop > p) {
            if (conn->flags & ENDS_IN_CR)
                count(conn, (const uint8_t *)"\r", 1);
            /* A CR is held back until it is known whether LF follows. */
            int cr = stop[-1] == '\r';
            conn->flags = (uint8_t)(cr ? conn->flags | ENDS_IN_CR : conn->flags & ~ENDS_IN_CR);
            count(conn, (const uint8_t *)p, (size_t)(stop - p - cr));
        }
        if (!newline)
            break;
        out = finish(conn, out);
        p = newline + 1;
    }
    return out;
}

static void end_connection(int fd) {
    free(conns[fd].unsent);
    close(fd);
}

static void watch(int fd, uint32_t events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &event);
}

static void flush(int fd) {
    struct conn *conn = &conns[fd];
    ssize_t sent = send(fd, conn->unsent, conn->unsent_size, MSG_NOSIGNAL);
    if (sent < 0) {
        if (errno != EAGAIN && errno != EINTR)
            end_connection(fd);
        return;
    }
    conn->unsent_size -= (uint32_t)sent;
    memmove(conn->unsent, conn->unsent + sent, conn->unsent_size);
    if (conn->unsent_size)
        return;
    free(conn->unsent);
    conn->unsent = NULL;
    if (conn->flags & PEER_ENDED)
        end_connection(fd);
    else
        watch(fd, EPOLLIN);
}

static void serve(int fd) {
    struct conn *conn = &conns[fd];
    ssize_t size = recv(fd, received, sizeof received, 0);
    if (size < 0) {
        if (errno != EAGAIN && errno != EINTR)
            end_connection(fd);
        return;
    }
    char *out;
    if (size > 0) {
        out = answer(conn, received, received + size, replies);
    } else {
        out = replies;
        conn->flags |= PEER_ENDED;
        if (conn->flags & BEGUN) {
            if (conn->flags & ENDS_IN_CR)
                count(conn, (const uint8_t *)"\r", 1);
            out = finish(conn, out);
        }
    }
    size_t length = (size_t)(out - replies);
    ssize_t sent = length ? send(fd, replies, length, MSG_NOSIGNAL) : 0;
    if (sent < 0) {
        if (errno != EAGAIN && errno != EINTR) {
            end_connection(fd);
            return;
        }
        sent = 0;
    }
    if ((size_t)sent < length) {
        conn->unsent_size = (uint32_t)(length - (size_t)sent);
        conn->unsent = malloc(conn->unsent_size);
        if (conn->unsent == NULL)
            abort();
        memcpy(conn->unsent, replies + sent, conn->unsent_size);
        watch(fd, EPOLLOUT);
    } else if (conn->flags & PEER_ENDED) {
        end_connection(fd);
    }
}

static void accept_some(int listener, int capacity) {
    for (int i = 0; i < 64; i++) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), on = 1;
        if (fd < 0)
            return;
        if (fd >= capacity) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        conns[fd] = (struct conn){0};
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
    }
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: c_epoll PORT\n");
        return 2;
    }
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    /* Indexed by descriptor; memory that is never touched costs nothing. */
    conns = calloc(limit.rlim_cur, sizeof *conns);
    invalid_at = calloc(limit.rlim_cur, sizeof *invalid_at);

    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, length) != 0 || listen(listener, BACKLOG) != 0) {
        perror("c_epoll");
        return 3;
    }
    getsockname(listener, (struct sockaddr *)&address, &length);
    printf("listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);

    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[EVENTS];
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int ready = epoll_wait(epoll_fd, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd == listener)
                accept_some(listener, (int)limit.rlim_cur);
            else if (conns[fd].unsent)
                flush(fd);
            else
                serve(fd);
        }
    }
}
