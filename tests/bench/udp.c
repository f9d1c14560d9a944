/* Copyright (c) 2026, The trueip.l4proxy authors
 * GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Both ends of the UDP works of the benchmark. C, so that not they are what is measured.
 *
 *   udp echo ADDRESS PORT                                  answer every datagram with itself, for ever
 *   udp load ADDRESS PORT CLIENTS IN_FLIGHT SIZE SECONDS [SOURCE...]
 *       request and reply: IN_FLIGHT clients at a time, each a socket of its own, in turn; a line of JSON at the end
 *   udp new  ADDRESS PORT CLIENTS IN_FLIGHT SIZE SECONDS [SOURCE...]
 *       the same, but every request comes from a new socket
 *
 * Sockets take the SOURCE addresses in turn: a client of a proxy is an address, and not only a port.
 * A reply is late after a second: it counts as lost, and its client goes on with the next request.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BATCH 64
#define MAX_SIZE 65536
#define BUCKETS 100000 /* latencies in units of 10 us, up to a second */
#define LATE 1.0

struct client {
    int fd;
    double sent;
    uint32_t number;
};

static char buffer[BATCH][MAX_SIZE];
static uint32_t latency[BUCKETS + 1];
static char **sources; /* addresses, up to a NULL */

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static int open_socket(void)
{
    int size = 8 << 20, fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    if (fd < 0)
        die("socket");
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
    return fd;
}

static void echo(struct sockaddr_in *address)
{
    struct mmsghdr messages[BATCH];
    struct iovec parts[BATCH];
    struct sockaddr_in peers[BATCH];
    int fd = open_socket(), count;

    if (bind(fd, (struct sockaddr *)address, sizeof *address))
        die("bind");
    for (;;) {
        for (int i = 0; i < BATCH; i++) {
            parts[i] = (struct iovec){buffer[i], MAX_SIZE};
            messages[i].msg_hdr = (struct msghdr){&peers[i], sizeof peers[i], &parts[i], 1, NULL, 0, 0};
        }
        count = recvmmsg(fd, messages, BATCH, 0, NULL);
        if (count < 0) {
            struct timeval wait = {1, 0};
            fd_set set;
            FD_ZERO(&set);
            FD_SET(fd, &set);
            select(fd + 1, &set, NULL, NULL, &wait);
            continue;
        }
        for (int i = 0; i < count; i++)
            parts[i].iov_len = messages[i].msg_len;
        sendmmsg(fd, messages, count, 0);
    }
}

static void connect_client(struct client *client, struct sockaddr_in *address, int poll)
{
    struct epoll_event event = {EPOLLIN, {.ptr = client}};
    static int opened, source_count;
    client->fd = open_socket();
    while (sources[source_count])
        source_count++;
    if (source_count) {
        struct sockaddr_in source = {.sin_family = AF_INET};
        if (inet_pton(AF_INET, sources[opened++ % source_count], &source.sin_addr) != 1)
            die("source");
        if (bind(client->fd, (struct sockaddr *)&source, sizeof source))
            die("bind");
    }
    if (connect(client->fd, (struct sockaddr *)address, sizeof *address))
        die("connect");
    if (epoll_ctl(poll, EPOLL_CTL_ADD, client->fd, &event))
        die("epoll_ctl");
}

static void request(struct client *client, size_t size, double time)
{
    client->number++;
    client->sent = time;
    memcpy(buffer[0], &client->number, sizeof client->number);
    send(client->fd, buffer[0], size, 0);
}

static double percentile(uint64_t total, double part)
{
    uint64_t seen = 0;
    for (int i = 0; i <= BUCKETS; i++)
        if ((seen += latency[i]) >= total * part)
            return i / 1e5;
    return LATE;
}

static void load(struct sockaddr_in *address, int count, int in_flight, size_t size, double seconds, int renew)
{
    struct client *clients = calloc(count, sizeof *clients), *idle[count];
    struct epoll_event events[BATCH];
    int poll = epoll_create1(0), waiting = 0, first = 0;
    uint64_t replies = 0, lost = 0;
    double start = now(), end = start + seconds, check = start + LATE, time = start;

    /* idle is a ring: whoever has had its answer waits until all others had their turn. */
    for (int i = 0; i < count; i++) {
        connect_client(&clients[i], address, poll);
        idle[i] = &clients[(i + in_flight) % count];
    }
    for (int i = 0; i < in_flight; i++)
        request(&clients[i], size, time);
    waiting = count - in_flight;
    while (time < end) {
        int ready = epoll_wait(poll, events, BATCH, 10);
        time = now();
        for (int i = 0; i < ready; i++) {
            struct client *client = events[i].data.ptr, *next = client;
            uint32_t number;
            ssize_t got = recv(client->fd, buffer[1], MAX_SIZE, 0);
            memcpy(&number, buffer[1], sizeof number);
            if (got != (ssize_t)size || number != client->number || !client->sent)
                continue; /* an answer that came too late, or not whole */
            double took = time - client->sent;
            latency[took >= LATE ? BUCKETS : (int)(took * 1e5)]++;
            replies++;
            client->sent = 0;
            if (renew) {
                close(client->fd);
                connect_client(client, address, poll);
            } else if (waiting) {
                next = idle[first];
                idle[first] = client; /* the ring is full: its oldest leaves as this one enters */
                first = (first + 1) % waiting;
            }
            request(next, size, time);
        }
        if (time > check) {
            check = time + LATE / 4;
            for (int i = 0; i < count; i++)
                if (clients[i].sent && time - clients[i].sent > LATE) {
                    lost++;
                    request(&clients[i], size, time);
                }
        }
    }
    printf("{\"replies\": %lu, \"lost\": %lu, \"seconds\": %.6f, \"p50\": %.6f, \"p99\": %.6f}\n",
           replies, lost, time - start, percentile(replies, 0.5), percentile(replies, 0.99));
}

int main(int argc, char **argv)
{
    struct sockaddr_in address = {.sin_family = AF_INET};

    if (argc < 4 || inet_pton(AF_INET, argv[2], &address.sin_addr) != 1) {
        fprintf(stderr, "usage: udp echo|load|new ADDRESS PORT [CLIENTS IN_FLIGHT SIZE SECONDS [SOURCE...]]\n");
        return 2;
    }
    address.sin_port = htons(atoi(argv[3]));
    if (!strcmp(argv[1], "echo"))
        echo(&address);
    else if (argc >= 8) {
        sources = argv + 8;
        load(&address, atoi(argv[4]), atoi(argv[5]), atoi(argv[6]), atof(argv[7]), !strcmp(argv[1], "new"));
    }
    return 0;
}
