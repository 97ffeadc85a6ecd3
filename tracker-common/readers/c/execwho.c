/*
 * execwho: every exec on the host, with the container that it happens in. An example of a tracer that knows nothing of the
 * tracker but its plane, in one file of C.
 *
 *     cc -O2 -o execwho execwho.c
 *     sudo ./execwho [--plane PATH] [--seconds N]
 *
 *     12:04:07.113  4711  nginx            container  web-1  shop/web-7d4b9
 *     12:04:07.120  4733  ls               host
 *
 * Where events come from: the kernel's process connector, a netlink socket that tells of each exec with its pid and time.
 * It needs root, no BPF and no kernel headers; but it says no namespace, so that is read from /proc, and a process may be
 * gone by then ("gone"). A tracer whose events carry the namespace, as all BPF programs' can, does not have this gap.
 *
 * What to learn from it:
 * - The question is what the mount ns was *at the event's time*: the number may mean another container by now.
 * - A mount ns that the plane does not know yet may be a container that is just being born. The plane tells when something
 *   was published; it is waited for once, and for a moment only.
 * - "busy" and "unknown" are answers, and are printed as such.
 * - A tracker that is restarted is nothing to this program, except that a new file may have taken the old one's place.
 *
 * SPDX-License-Identifier: Apache-2.0 OR MIT
 */
#define _GNU_SOURCE
/* Somebody may cut the file under us: live on. */
#define TRACKER_PLANE_GUARD
#include "tracker_plane.h"

#include <inttypes.h>
#include <linux/cn_proc.h>
#include <linux/connector.h>
#include <linux/netlink.h>
#include <poll.h>
#include <sys/socket.h>

/* How long a mount ns that nobody knows is waited for. */
#define BIRTH_MS 20u

static struct tracker_plane plane;
static struct tracker_container container;

/* A socket on which the kernel tells of processes, or -1. */
static int listen_to_processes(void) {
    const enum proc_cn_mcast_op operation = PROC_CN_MCAST_LISTEN;
    struct nlmsghdr netlink;
    struct cn_msg connector;
    struct sockaddr_nl address;
    char request[NLMSG_HDRLEN + sizeof connector + sizeof operation];
    const int fd = socket(PF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_CONNECTOR);
    if (fd < 0)
        return -1;
    /* Some seconds of a busy machine; what does not fit is lost, and the kernel says so (ENOBUFS). */
    const int room = 4 << 20;
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
    memset(&address, 0, sizeof address);
    address.nl_family = AF_NETLINK;
    address.nl_groups = CN_IDX_PROC;
    memset(&netlink, 0, sizeof netlink);
    netlink.nlmsg_len = sizeof request;
    netlink.nlmsg_type = NLMSG_DONE;
    memset(&connector, 0, sizeof connector);
    connector.id.idx = CN_IDX_PROC;
    connector.id.val = CN_VAL_PROC;
    connector.len = sizeof operation;
    memcpy(request, &netlink, sizeof netlink);
    memcpy(request + NLMSG_HDRLEN, &connector, sizeof connector);
    memcpy(request + NLMSG_HDRLEN + sizeof connector, &operation, sizeof operation);
    if (bind(fd, (const struct sockaddr *)(const void *)&address, sizeof address) != 0 ||
        send(fd, request, sizeof request, 0) != (ssize_t)sizeof request) {
        close(fd);
        return -1;
    }
    return fd;
}

/* What events' times, of CLOCK_MONOTONIC, lack to be the plane's: the time that the machine was suspended. */
static uint64_t suspended_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    const uint64_t monotonic = (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
    const uint64_t boottime = tracker_now_ns();
    /* The two were asked one after the other: less than a millisecond is none. */
    return boottime - monotonic < 1000000 ? 0 : boottime - monotonic;
}

/* Text that somebody else chose must not steer a terminal. */
static void print_safely(const char *text) {
    for (; *text != '\0'; text++)
        putchar((unsigned char)*text < 0x20 || *text == 0x7f ? '?' : *text);
}

/* The inode number of a process's mount ns; 0 when it has gone. */
static uint64_t mount_namespace(pid_t pid) {
    char path[40];
    struct stat status;
    snprintf(path, sizeof path, "/proc/%d/ns/mnt", (int)pid);
    return stat(path, &status) == 0 ? (uint64_t)status.st_ino : 0;
}

static enum tracker_answer who(uint64_t mntns, uint64_t when) {
    const uint32_t seen = tracker_changes(&plane);
    enum tracker_answer answer = tracker_lookup(&plane, TRACKER_MNTNS, mntns, when, &container);
    if (answer == TRACKER_UNKNOWN && tracker_wait(&plane, seen, BIRTH_MS) == 1)
        answer = tracker_lookup(&plane, TRACKER_MNTNS, mntns, when, &container);
    return answer;
}

static void tell(pid_t pid, uint64_t when) {
    char comm[32] = "";
    char path[40];
    char clock[16] = "";
    struct timespec now;
    struct tm local;
    snprintf(path, sizeof path, "/proc/%d/comm", (int)pid);
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        const ssize_t len = read(fd, comm, sizeof comm - 1);
        comm[len > 0 ? len - 1 : 0] = '\0';
        close(fd);
    }
    const uint64_t mntns = mount_namespace(pid);
    clock_gettime(CLOCK_REALTIME, &now);
    if (localtime_r(&now.tv_sec, &local) != NULL)
        strftime(clock, sizeof clock, "%H:%M:%S", &local);
    printf("%s.%03ld\t%d\t", clock, now.tv_nsec / 1000000, (int)pid);
    print_safely(comm);
    putchar('\t');
    if (mntns == 0) {
        puts("gone");
        return;
    }
    switch (who(mntns, when)) {
    case TRACKER_CONTAINER:
        printf("%s\t", tracker_kind_name(container.row.kind));
        print_safely(container.name[0] != '\0' ? container.name : container.id);
        putchar('\t');
        if (container.pod[0] != '\0') {
            print_safely(container.pod_namespace);
            putchar('/');
            print_safely(container.pod);
        }
        putchar('\n');
        break;
    case TRACKER_HOST:
        puts("host");
        break;
    case TRACKER_UNKNOWN:
        printf("unknown\tmntns:%" PRIu64 "\n", mntns);
        break;
    case TRACKER_BUSY:
        puts("busy");
        break;
    }
}

/* All execs of one datagram. */
static void read_events(const char *bytes, size_t len, uint64_t suspended) {
    while (len >= sizeof(struct nlmsghdr)) {
        struct nlmsghdr netlink;
        struct proc_event event;
        const size_t head = NLMSG_HDRLEN + sizeof(struct cn_msg);
        memcpy(&netlink, bytes, sizeof netlink);
        if (netlink.nlmsg_len < sizeof netlink || netlink.nlmsg_len > len)
            return;
        /* The event is shorter on older kernels: what is missing is zero. */
        if (netlink.nlmsg_len > head) {
            const size_t size = netlink.nlmsg_len - head;
            memset(&event, 0, sizeof event);
            memcpy(&event, bytes + head, size < sizeof event ? size : sizeof event);
            if (event.what == PROC_EVENT_EXEC)
                tell(event.event_data.exec.process_tgid, event.timestamp_ns + suspended);
        }
        const size_t step = NLMSG_ALIGN(netlink.nlmsg_len);
        if (step >= len)
            return;
        bytes += step;
        len -= step;
    }
}

int main(int argc, char **argv) {
    const char *path = TRACKER_PLANE_PATH;
    uint64_t end = UINT64_MAX;
    char error[TRACKER_ERROR_LEN];
    for (int at = 1; at < argc; at += 2) {
        if (at + 1 < argc && strcmp(argv[at], "--plane") == 0) {
            path = argv[at + 1];
        } else if (at + 1 < argc && strcmp(argv[at], "--seconds") == 0) {
            end = tracker_now_ns() + strtoull(argv[at + 1], NULL, 10) * 1000000000ull;
        } else {
            fprintf(stderr, "usage: %s [--plane PATH] [--seconds N]\n", argv[0]);
            return 2;
        }
    }
    if (tracker_plane_open(&plane, path, error) != 0) {
        fprintf(stderr, "execwho: %s\n", error);
        return 2;
    }
    const int fd = listen_to_processes();
    if (fd < 0) {
        fprintf(stderr, "execwho: listen to the kernel's process connector: %s; run as root on the host\n",
                strerror(errno));
        return 2;
    }
    fprintf(stderr, "execwho: listening; the plane is %s\n", tracker_condition_name(tracker_condition(&plane)));
    while (tracker_now_ns() < end) {
        /* Larger than any event. */
        static char bytes[8192];
        struct pollfd readable = {fd, POLLIN, 0};
        /* Where there is no other plane yet, the old one goes on telling what it knows. */
        if (tracker_reopen_if_superseded(&plane, path, error) > 0)
            fprintf(stderr, "execwho: there is a new plane\n");
        if (poll(&readable, 1, 100) <= 0)
            continue;
        struct sockaddr_nl sender;
        socklen_t sender_len = sizeof sender;
        memset(&sender, 0, sizeof sender);
        const ssize_t len = recvfrom(fd, bytes, sizeof bytes, 0, (struct sockaddr *)(void *)&sender, &sender_len);
        if (len > 0 && sender.nl_pid != 0)
            continue; /* somebody who is not the kernel */
        if (len > 0)
            read_events(bytes, (size_t)len, suspended_ns());
        else if (len < 0 && errno == ENOBUFS)
            fprintf(stderr, "execwho: events were lost: this machine executes faster than they are printed\n");
        else if (len < 0 && errno != EINTR)
            break;
        fflush(stdout);
    }
    tracker_plane_close(&plane);
    close(fd);
    return 0;
}
