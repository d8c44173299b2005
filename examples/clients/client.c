/*
 * A client of blockchain-tcpd in C11 for Linux, with libc alone.
 *
 *     cc -O2 -Wall -Wextra -o client client.c
 *     ./client [--repeat SECONDS] HOST PORT REQUEST [REQUEST ...]
 *
 * What is above "The program" is to be copied, what is below shows its use. README.md, beside this file, says what both do.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sysexits.h>
#include <time.h>
#include <unistd.h>

enum {
    LONGEST_REQUEST = 1023, /* bytes, without the line end */
    LONGEST_REPLY = 4096,   /* bytes: a server that sends longer lines speaks something else */
    BATCH = 4096,           /* bytes of requests sent at once: the system takes them even when the server reads none */
    ATTEMPTS = 5,           /* in a row without a reply, before it gives up */
    PAUSE = 100,            /* milliseconds before the second attempt, and twice as long before each further one */
};

struct client {
    const char *host, *port;
    long timeout; /* in milliseconds */
    int socket;   /* -1 while there is no connection: it is made when something is asked */
    size_t begin, end;
    char buffer[4096];            /* what has come, and from begin to end is not part of a line yet */
    char line[LONGEST_REPLY + 1]; /* the latest line of the server */
    bool busy;                    /* the server had no room at the last attempt */
    char trouble[256];            /* why something was not answered */
};

/* What the server answers: a value; or, if there is a word (for programs), an error, and the text is a sentence for people. */
struct reply {
    const char *word, *text;
};

typedef void taker(void *context, const char *request, struct reply reply);

static void client_close(struct client *client) {
    if (client->socket >= 0)
        close(client->socket);
    client->socket = -1;
    client->begin = client->end = 0;
}

/* Says why, and fails. */
static bool lost(struct client *client, const char *what, const char *more) {
    snprintf(client->trouble, sizeof client->trouble, "%s%s", what, more);
    client_close(client);
    return false;
}

static long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

/* Whether there is something to read before the deadline. */
static bool readable(struct client *client, long deadline) {
    struct pollfd polled = {.fd = client->socket, .events = POLLIN};
    long left = deadline - now();
    return poll(&polled, 1, left > 0 ? (int)left : 0) > 0;
}

static bool client_connect(struct client *client) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *addresses;
    struct timeval timeout = {.tv_sec = client->timeout / 1000, .tv_usec = client->timeout % 1000 * 1000};
    int error = getaddrinfo(client->host, client->port, &hints, &addresses);
    if (error)
        return lost(client, "no connection: ", gai_strerror(error));
    for (struct addrinfo *address = addresses; address && client->socket < 0; address = address->ai_next) {
        client->socket = socket(address->ai_family, address->ai_socktype | SOCK_CLOEXEC, address->ai_protocol);
        /* On Linux this bounds connect, too, which then says that it is in progress. */
        setsockopt(client->socket, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
        if (connect(client->socket, address->ai_addr, address->ai_addrlen)) {
            error = errno == EINPROGRESS ? ETIMEDOUT : errno;
            client_close(client);
        }
    }
    freeaddrinfo(addresses);
    return client->socket >= 0 || lost(client, "no connection: ", strerror(error));
}

/* Sends as many of the requests as are sent at once, and returns how many; none, if the connection is lost. */
static size_t send_batch(struct client *client, char **requests, size_t count) {
    char batch[BATCH];
    size_t size = 0, asked = 0, length;
    /* Nobody was asked anything: what has come is the end, or last words, or no reply to what is asked next. */
    if (client->socket >= 0 && (client->begin < client->end || readable(client, 0)))
        client_close(client);
    client->busy = false;
    if (client->socket < 0 && !client_connect(client))
        return 0;
    while (asked < count && size + (length = strlen(requests[asked])) < BATCH) {
        memcpy(batch + size, requests[asked++], length);
        size += length;
        batch[size++] = '\n';
    }
    if (send(client->socket, batch, size, MSG_NOSIGNAL) != (ssize_t)size)
        return lost(client, strerror(errno), "");
    return asked;
}

/* Reads the next line, without its end. */
static bool read_line(struct client *client) {
    long deadline = now() + client->timeout;
    for (size_t length = 0;;) {
        if (client->begin == client->end) {
            if (!readable(client, deadline))
                return lost(client, "no reply in time", "");
            ssize_t received = recv(client->socket, client->buffer, sizeof client->buffer, 0);
            if (received <= 0)
                return lost(client, received ? strerror(errno) : "the server closed the connection", "");
            client->begin = 0;
            client->end = (size_t)received;
        }
        char byte = client->buffer[client->begin++];
        if (byte != '\n' && (byte < ' ' || byte > '~' || length == LONGEST_REPLY))
            return lost(client, "the server sent something that is no reply", "");
        client->line[length++] = byte == '\n' ? '\0' : byte;
        if (byte == '\n')
            return true;
    }
}

static bool read_reply(struct client *client, struct reply *reply) {
    if (!read_line(client))
        return false;
    *reply = (struct reply){.word = NULL, .text = client->line};
    if (strncmp(client->line, "ERR ", 4) == 0) {
        char *sentence = strchrnul(client->line + 4, ' ');
        reply->text = *sentence ? sentence + 1 : sentence;
        *sentence = '\0';
        reply->word = client->line + 4;
        /* These two are about the connection, whatever was asked, and the server closes after them. */
        client->busy = strcmp(reply->word, "BUSY") == 0;
        if (client->busy)
            return lost(client, "the server is busy: ", reply->text);
        if (strcmp(reply->word, "TIMEOUT") == 0)
            return lost(client, "the server closed the connection: ", reply->text);
    }
    return true;
}

/* Whether it is a line with a word in it, and no longer than may be. */
static bool is_request(const char *text) {
    size_t length = strlen(text);
    for (const char *byte = text; *byte; byte++)
        if (*byte != '\t' && (*byte < ' ' || *byte > '~'))
            return false;
    return length <= LONGEST_REQUEST && strspn(text, " \t") < length;
}

/* Hands the reply to each request to `take`, in order. Returns 0, or the exit status that client->trouble comes to. */
static int client_ask(struct client *client, char **requests, size_t count, taker *take, void *context) {
    for (size_t i = 0; i < count; i++)
        if (!is_request(requests[i])) {
            snprintf(client->trouble, sizeof client->trouble, "not a request: %s", requests[i]);
            return EX_USAGE;
        }
    for (int failures = 0; count > 0;) {
        struct reply reply;
        size_t asked = send_batch(client, requests, count);
        for (; asked > 0 && read_reply(client, &reply); asked--) {
            take(context, *requests++, reply);
            count--;
            failures = 0;
        }
        if (client->socket < 0) {
            failures++;
            if (failures == ATTEMPTS)
                return client->busy ? EX_TEMPFAIL : EX_UNAVAILABLE;
            poll(NULL, 0, PAUSE << (failures - 1));
        }
    }
    return 0;
}

static void take_pong(void *context, const char *request, struct reply reply) {
    (void)request;
    *(bool *)context = !reply.word && strcmp(reply.text, "PONG") == 0;
}

/* To be called when nothing has been asked for a while, or the server closes the connection. */
static void client_keep_alive(struct client *client) {
    char *ping = "PING";
    bool is_pong = false;
    client_ask(client, &ping, 1, take_pong, &is_pong);
    if (!is_pong)
        client_close(client);
}

/* The program. */

static void take_and_print(void *context, const char *request, struct reply reply) {
    if (reply.word) {
        fprintf(stderr, "%s: %s: %s\n", request, reply.word, reply.text);
        *(int *)context = 1;
    } else if (printf("%s\t%s\n", request, reply.text) < 0 || fflush(stdout)) {
        perror("client: stdout");
        exit(EX_IOERR);
    }
}

static void wrong(const char *what, const char *text) {
    fprintf(stderr, "usage: client [--repeat SECONDS] HOST PORT REQUEST [REQUEST ...]\nclient: %s%s\n", what, text);
    exit(EX_USAGE);
}

/* Returns the exit status that this comes to. */
static int ask_and_print(struct client *client, char **requests, size_t count) {
    int refused = 0, status = client_ask(client, requests, count, take_and_print, &refused);
    if (status == EX_USAGE)
        wrong(client->trouble, "");
    if (status)
        fprintf(stderr, "client: %s:%s: %s\n", client->host, client->port, client->trouble);
    return status ? status : refused;
}

/* Waits so many milliseconds, and keeps the connection alive meanwhile. */
static void wait_for(struct client *client, long left, long keepalive) {
    for (; left > keepalive; left -= keepalive) {
        poll(NULL, 0, (int)keepalive);
        client_keep_alive(client);
    }
    poll(NULL, 0, (int)left);
}

/* This number of seconds in milliseconds. */
static long milliseconds(const char *text) {
    char *end;
    double number = strtod(text, &end);
    if (*end || end == text || end[-1] == '.' || strspn(text, "0123456789.") != strlen(text) || !(number >= 0.001 && number <= 1e6))
        wrong("not a number of seconds: ", text);
    return (long)(number * 1000);
}

static long setting(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return milliseconds(value ? value : otherwise);
}

int main(int count, char **words) {
    long repeat = 0;
    if (count > 2 && strcmp(words[1], "--repeat") == 0) {
        repeat = milliseconds(words[2]);
        words += 2;
        count -= 2;
    }
    if (count < 4 || strspn(words[1], "-") || !*words[1])
        wrong("nothing to ask", "");
    if (strspn(words[2], "0123456789") != strlen(words[2]) || atol(words[2]) < 1 || atol(words[2]) > 65535)
        wrong("not a port: ", words[2]);
    struct client client = {.host = words[1], .port = words[2], .socket = -1, .timeout = setting("TIMEOUT", "2")};
    long keepalive = setting("KEEPALIVE", "60");
    while (repeat) {
        ask_and_print(&client, words + 3, (size_t)count - 3);
        wait_for(&client, repeat, keepalive);
    }
    int status = ask_and_print(&client, words + 3, (size_t)count - 3);
    client_close(&client);
    return status;
}
