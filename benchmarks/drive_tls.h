/* TLS for drive.c: compiled with -DWITH_TLS, and linked with -lssl -lcrypto; without, nothing of it is there.
 *
 * OpenSSL works between two buffers in memory, so that it is decided here what leaves in one send: many records, or the end
 * of the handshake together with the first messages. Only TLS 1.3. The server's certificate is not judged (its signature is
 * checked by OpenSSL all the same): it was made for this run, and what is to be measured is the server.
 */
#include <openssl/err.h>
#include <openssl/ssl.h>

#define RECORD_BYTES 16384

static SSL_CTX *tls_context;

static void die_of_tls(const char *what) {
    char reason[256] = "no reason given";
    unsigned long code = ERR_get_error();
    if (code)
        ERR_error_string_n(code, reason, sizeof reason);
    die("TLS: %s: %s", what, reason);
}

/* Tickets come after the handshake, two of them after a whole one: the newest is kept for the slot's next connection. */
static int keep_session(SSL *ssl, SSL_SESSION *session) {
    struct conn *conn = SSL_get_app_data(ssl);
    SSL_SESSION_free(conn->session);
    conn->session = session;
    return 1;
}

static void tls_prepare(void) {
    tls_context = SSL_CTX_new(TLS_client_method());
    if (tls_context == NULL || !SSL_CTX_set_min_proto_version(tls_context, TLS1_3_VERSION))
        die_of_tls("no context");
    SSL_CTX_set_session_cache_mode(tls_context, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    if (opt.resume)
        SSL_CTX_sess_set_new_cb(tls_context, keep_session);
}

/* Send what TLS has to send, as far as the socket takes it. */
static void tls_push(struct conn *conn) {
    BIO *out = SSL_get_wbio(conn->ssl);
    char *sealed;
    size_t size = (size_t)BIO_get_mem_data(out, &sealed);
    while (conn->pushed < size) {
        ssize_t sent = send(conn->fd, sealed + conn->pushed, size - conn->pushed, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EAGAIN)
                return; /* an EPOLLOUT event brings us back */
            die("send: %s", strerror(errno));
        }
        conn->pushed += (size_t)sent;
    }
    if (size)
        BIO_reset(out);
    conn->pushed = 0;
}

/* Where the next record of the messages ends. */
static size_t record_end(const struct conn *conn) {
    size_t left = conn->send_to - conn->send_from;
    if (opt.records) {
        const char *begin = messages.bytes + conn->send_from;
        left = (size_t)((const char *)memchr(begin, '\n', left) + 1 - begin);
    }
    return conn->send_from + (left < RECORD_BYTES ? left : RECORD_BYTES);
}

/* Seal what may be sent, if the handshake is done, and send it. */
static void tls_send_some(struct conn *conn) {
    while (SSL_is_init_finished(conn->ssl) && conn->send_from < conn->send_to) {
        int size = (int)(record_end(conn) - conn->send_from);
        if (SSL_write(conn->ssl, messages.bytes + conn->send_from, size) != size)
            die_of_tls("cannot write");
        conn->send_from += (size_t)size;
    }
    tls_push(conn);
}

/* Begin: what is to be sent follows when the handshake is done, which `tls_recv` goes on with. */
static void tls_open(struct conn *conn) {
    conn->ssl = SSL_new(tls_context);
    if (conn->ssl == NULL)
        die_of_tls("no connection");
    SSL_set_app_data(conn->ssl, conn);
    SSL_set_bio(conn->ssl, BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem()));
    if (conn->session)
        SSL_set_session(conn->ssl, conn->session);
    SSL_set_connect_state(conn->ssl);
    SSL_do_handshake(conn->ssl);
    tls_push(conn);
}

/* As recv(2) does, with the plaintext of a record at most. */
static ssize_t tls_recv(struct conn *conn, char *buffer, size_t size) {
    static char sealed[RECV_BYTES];
    for (;;) {
        int in_handshake = !SSL_is_init_finished(conn->ssl);
        int got = SSL_read(conn->ssl, buffer, (int)size);
        int reason = SSL_get_error(conn->ssl, got); /* of this call, so before any other */
        if (in_handshake && SSL_is_init_finished(conn->ssl)) {
            if (conn->session && !SSL_session_reused(conn->ssl))
                die("the server did not resume a session");
            tls_send_some(conn);
        }
        if (got > 0)
            return got;
        if (reason == SSL_ERROR_ZERO_RETURN)
            return 0;
        if (reason != SSL_ERROR_WANT_READ)
            die_of_tls("cannot read");
        tls_push(conn);
        ssize_t came = recv(conn->fd, sealed, sizeof sealed, MSG_DONTWAIT);
        if (came < 0)
            return -1;
        if (came == 0)
            die("the server ended a connection without TLS's goodbye");
        BIO_write(SSL_get_rbio(conn->ssl), sealed, (int)came);
    }
}

/* Say goodbye, and wait for nothing. */
static void tls_close(struct conn *conn) {
    if (opt.resume && conn->session == NULL)
        die("the server sent no ticket to resume a session with");
    SSL_shutdown(conn->ssl);
    tls_push(conn);
    SSL_free(conn->ssl);
    conn->ssl = NULL;
}
