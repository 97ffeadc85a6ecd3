/*
 * Looks up in the tracker's plane, one question per line of standard input, and answers each with a line of JSON: what
 * shell scripts use, and what the tests hold the header to.
 *
 *     cc -O2 -o plane-lookup plane-lookup.c
 *     echo "mntns $(stat -Lc %i /proc/self/ns/mnt) now" | ./plane-lookup
 *
 * Questions: `mntns|netns|cgroup|pid NUMBER now|NANOSECONDS`, `list`, `status`, `bench NUMBER…`.
 *
 * SPDX-License-Identifier: Apache-2.0 OR MIT
 */
#define _GNU_SOURCE
#define TRACKER_PLANE_GUARD
#include "tracker_plane.h"

#include <inttypes.h>

static struct tracker_plane plane;
static struct tracker_container container;

/* A text that others chose, as a JSON string. */
static void print_text(const char *name, const char *text) {
    printf(",\"%s\":\"", name);
    for (; *text != '\0'; text++) {
        const unsigned char byte = (unsigned char)*text;
        if (byte == '"' || byte == '\\')
            printf("\\%c", byte);
        else if (byte < 0x20)
            printf("\\u%04x", byte);
        else
            putchar(byte);
    }
    putchar('"');
}

static void print_container(void) {
    const struct tracker_row *row = &container.row;
    printf("{\"row\":%" PRIu32 ",\"kind\":\"%s\",\"state\":\"%s\",\"grade\":\"%s\"", container.number,
           tracker_kind_name(row->kind), tracker_state_name(row->state), tracker_grade_name(row->grade));
    printf(",\"flags\":%" PRIu32 ",\"uses\":%" PRIu32 ",\"mntns\":%" PRIu32 ",\"netns\":%" PRIu32 ",\"pidns\":%" PRIu32
           ",\"pid\":%" PRIu32 ",\"exit_code\":%" PRIu32,
           row->flags, row->uses, row->mntns, row->netns, row->pidns, row->pid, row->exit_code);
    printf(",\"opened\":%" PRIu64 ",\"closed\":%" PRIu64 ",\"init_opened\":%" PRIu64 ",\"init_closed\":%" PRIu64,
           row->opened, row->closed, row->init_opened, row->init_closed);
    printf(",\"generation\":%" PRIu64 ",\"cgroup\":%" PRIu64 ",\"start_ticks\":%" PRIu64 ",\"born\":%" PRIu64
           ",\"started\":%" PRIu64 ",\"died\":%" PRIu64 ",\"sequence\":%" PRIu64 ",\"instance\":%" PRIu64,
           row->generation, row->cgroup, row->start_ticks, row->born, row->started, row->died, row->sequence,
           row->instance);
    print_text("id", container.id);
    print_text("name", container.name);
    print_text("pod", container.pod);
    print_text("pod_namespace", container.pod_namespace);
    print_text("image", container.image);
    print_text("runtime", container.runtime);
    putchar('}');
}

static const char *const answers[] = {"unknown", "container", "host", "busy"};

static void answer_one(enum tracker_index index, uint64_t key, uint64_t when) {
    const enum tracker_answer answer = tracker_lookup(&plane, index, key, when, &container);
    printf("{\"answer\":\"%s\",\"containers\":[", answers[answer]);
    if (answer == TRACKER_CONTAINER)
        print_container();
    puts("],\"excluded\":0,\"busy\":0}");
}

static void answer_all(enum tracker_index index, uint64_t key, uint64_t when) {
    struct tracker_walk walk;
    struct tracker_found found;
    uint32_t count = 0;
    uint32_t changed = 0;
    tracker_walk_begin(&walk, &plane, index, key, when);
    printf("{\"containers\":[");
    while (tracker_walk_next(&walk, &found)) {
        if (!tracker_read(&plane, &found, &container)) {
            changed++;
            continue;
        }
        if (count++ > 0)
            putchar(',');
        print_container();
    }
    const uint32_t busy = walk.busy + changed + (tracker_is_broken(&plane) ? 1u : 0u);
    const char *answer = walk.is_host ? "host" : count > 0 ? "container" : busy > 0 ? "busy" : "unknown";
    printf("],\"answer\":\"%s\",\"excluded\":%" PRIu32 ",\"busy\":%" PRIu32 "}\n", answer, walk.excluded, busy);
}

static void list(void) {
    uint32_t at = 0;
    uint32_t count = 0;
    printf("[");
    while (tracker_next(&plane, &at, &container)) {
        if (count++ > 0)
            putchar(',');
        print_container();
    }
    puts("]");
}

/* How long one look-up takes, over all of the given mount ns in turn. */
static void bench(char *numbers) {
    static uint64_t keys[65536];
    size_t count = 0;
    for (char *word = strtok(numbers, " \n"); word != NULL && count < 65536; word = strtok(NULL, " \n"))
        keys[count++] = strtoull(word, NULL, 10);
    uint64_t found_count = 0;
    const uint64_t rounds = count > 0 ? 2000000 : 0;
    const uint64_t from = tracker_now_ns();
    size_t at = 0;
    for (uint64_t round = 0; round < rounds; round++) {
        struct tracker_found found;
        found_count += tracker_find(&plane, TRACKER_MNTNS, keys[at], TRACKER_NOW, &found) == TRACKER_CONTAINER;
        at = at + 1 == count ? 0 : at + 1;
    }
    const double ns = (double)(tracker_now_ns() - from) / (double)(rounds > 0 ? rounds : 1);
    printf("{\"ns\":%.1f,\"found\":%" PRIu64 "}\n", ns, found_count);
}

int main(int argc, char **argv) {
    char error[TRACKER_ERROR_LEN];
    static char line[1 << 20];
    if (tracker_plane_open(&plane, argc > 1 ? argv[1] : NULL, error) != 0) {
        fprintf(stderr, "plane-lookup: %s\n", error);
        return 2;
    }
    while (fgets(line, sizeof line, stdin) != NULL) {
        static const char *const names[] = {"mntns", "netns", "cgroup", "pid"};
        char what[8] = "";
        char time[24] = "";
        uint64_t key = 0;
        int index = 4;
        if (tracker_reopen_if_superseded(&plane, argc > 1 ? argv[1] : NULL, error) < 0)
            fprintf(stderr, "plane-lookup: %s\n", error);
        if (strncmp(line, "bench ", 6) == 0) {
            bench(line + 6);
        } else if (strcmp(line, "list\n") == 0) {
            list();
        } else if (strcmp(line, "status\n") == 0) {
            printf("{\"condition\":\"%s\",\"owner_pid\":%" PRIu32 ",\"epoch\":%" PRIu32 ",\"changes\":%" PRIu32 "}\n",
                   tracker_condition_name(tracker_condition(&plane)), TRACKER_HALF(&plane, owner_pid),
                   TRACKER_HALF(&plane, epoch), tracker_changes(&plane));
        } else {
            const int fields = sscanf(line, "%7s %" SCNu64 " %23s", what, &key, time);
            for (index = 0; index < 4 && strcmp(what, names[index]) != 0; index++)
                continue;
            if (fields != 3 || index == 4) {
                fprintf(stderr, "plane-lookup: what is: %s", line);
                return 2;
            }
            const uint64_t when = strcmp(time, "now") == 0 ? TRACKER_NOW : strtoull(time, NULL, 10);
            if (index == TRACKER_MNTNS || index == TRACKER_PID)
                answer_one((enum tracker_index)index, key, when);
            else
                answer_all((enum tracker_index)index, key, when);
        }
        fflush(stdout);
    }
    tracker_plane_close(&plane);
    return 0;
}
