/*
 * Look-ups in the tracker's plane: which container a mount ns, net ns, cgroup id or pid belongs to, for a few memory
 * reads and without a system call, whether the tracker runs or not. docs/plane.md tells how it works.
 *
 * One file, C11 or C++11, GCC or Clang, Linux, little-endian, 64 bits; nothing but libc.
 *
 *     struct tracker_plane plane;
 *     char error[TRACKER_ERROR_LEN];
 *     if (tracker_plane_open(&plane, NULL, error) != 0)
 *         errx(1, "%s", error);
 *     static struct tracker_container found;
 *     switch (tracker_lookup(&plane, TRACKER_MNTNS, mntns, TRACKER_NOW, &found)) {
 *     case TRACKER_CONTAINER: puts(found.name); break;
 *     case TRACKER_HOST:      puts("the host itself"); break;
 *     case TRACKER_UNKNOWN:   puts("nothing that the tracker knows"); break;
 *     case TRACKER_BUSY:      puts("just being changed: try again"); break;
 *     }
 *
 * Any number of threads may look up in one plane at once. Whatever the file contains, nothing outside of it is read, and
 * each call ends. The tracker never cuts the file; a program that wants to live through anybody else doing so defines
 * TRACKER_PLANE_GUARD before it includes this file, which sets a handler for SIGBUS (see the end).
 *
 * SPDX-License-Identifier: Apache-2.0 OR MIT
 */
#ifndef TRACKER_PLANE_H
#define TRACKER_PLANE_H

#ifndef _GNU_SOURCE
#error "define _GNU_SOURCE before the first #include"
#endif

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the plane is little-endian"
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define TRACKER_PLANE_PATH "/run/tracker/plane"
#define TRACKER_PLANE_VERSION 1u
#define TRACKER_PLANE_SCHEMA 0x21162369e1942975ull
#define TRACKER_ERROR_LEN 512

/* The end of an interval that has not ended; and the time to ask about for "as it is now". */
#define TRACKER_OPEN UINT64_MAX
#define TRACKER_NOW UINT64_MAX

/* What the tracker's own rows never exceed. */
#define TRACKER_TEXT_MAX 4096u

/* How often one look-up tries again before it says TRACKER_BUSY. */
#define TRACKER_RETRIES 1000u

enum tracker_index { TRACKER_MNTNS, TRACKER_NETNS, TRACKER_CGROUP, TRACKER_PID };

enum tracker_answer {
    TRACKER_UNKNOWN,   /* nothing that the plane knows */
    TRACKER_CONTAINER, /* this container */
    TRACKER_HOST,      /* the host itself */
    TRACKER_BUSY       /* being changed; or was, when the tracker ended */
};

enum tracker_condition {
    TRACKER_FRESH,      /* the tracker was seen within the last seconds */
    TRACKER_OLD,        /* it was not, but is there: stopped, or starved */
    TRACKER_GONE,       /* it is no more, and did not say so */
    TRACKER_STOPPED,    /* it ended in an orderly way */
    TRACKER_SUPERSEDED, /* another file has taken this one's place: open the path again */
    TRACKER_BROKEN      /* the file was cut: open the path again */
};

/* Bits of tracker_row.flags. */
#define TRACKER_ROW_IN_USE 1u
#define TRACKER_ROW_TRUNCATED 2u
#define TRACKER_ROW_EXCLUDED 4u
#define TRACKER_ROW_INHERITED 8u
#define TRACKER_ROW_EXIT_KNOWN 16u

/* Bits of the header's flags. */
#define TRACKER_PLANE_SUPERSEDED 1u
#define TRACKER_PLANE_STOPPED 2u
#define TRACKER_PLANE_ADOPTING 4u

/* A row, as it lies in the file. Times are ns of CLOCK_BOOTTIME; 0 is unknown. */
struct tracker_row {
    uint64_t lock;
    uint32_t flags;
    uint32_t uses;
    uint32_t mntns;
    uint32_t netns;
    uint32_t pidns;
    uint32_t pid;
    uint64_t opened;
    uint64_t closed;
    uint64_t generation;
    uint8_t kind;
    uint8_t state;
    uint8_t grade;
    uint8_t reserved;
    uint32_t exit_code;
    uint64_t init_opened;
    uint64_t init_closed;
    uint64_t cgroup;
    uint64_t start_ticks;
    uint64_t born;
    uint64_t started;
    uint64_t died;
    uint64_t sequence;
    uint64_t instance;
    uint64_t text_at;
    uint32_t text_len;
    uint16_t text_lens[6]; /* id, name, pod, pod namespace, image, runtime */
    uint64_t reserved_end[4];
};

/* What the file begins with. */
struct tracker_header {
    char magic[8];
    uint32_t version;
    uint32_t header_len;
    uint64_t schema;
    uint64_t file_len;
    uint8_t boot_id[16];
    uint32_t capacity;
    uint32_t row_len;
    uint64_t rows_at;
    uint32_t entries;
    uint32_t entry_len;
    uint64_t index_at[4];
    uint64_t texts_at;
    uint64_t texts_len;
    uint32_t owner_pid;
    uint32_t epoch;
    uint64_t owner_start;
    uint64_t heartbeat;
    uint64_t sequence;
    uint32_t changes;
    uint32_t flags;
    uint32_t host_mntns;
    uint32_t host_netns;
    uint64_t host_cgroup;
    uint32_t rows_used;
    uint32_t rows;
    uint32_t tombstones;
    uint32_t waiting;
    uint64_t refused;
    uint64_t evicted;
    uint64_t truncated;
};

/* A row as it was at one moment, with its texts: each ends with a zero byte, and is empty where there is none. */
struct tracker_container {
    struct tracker_row row;
    uint32_t number;
    const char *id;
    const char *name;
    const char *pod;
    const char *pod_namespace;
    const char *image;
    const char *runtime;
    char texts[TRACKER_TEXT_MAX + 6];
};

/* What a look-up finds: enough to know which container it is, for two or three cache lines. */
struct tracker_found {
    uint32_t number; /* of the row; with `uses`, which container it is, while the epoch lasts */
    uint32_t uses;
    uint64_t lock; /* tells tracker_read whether the row has changed since */
    uint32_t flags;
    uint8_t kind;
};

struct tracker_plane {
    const uint64_t *words;
    size_t len;
    uint32_t capacity;
    uint32_t entries;
    size_t rows_at; /* in words, as all that follow */
    size_t index_at[4];
    size_t texts_at;
    size_t texts_end;
    dev_t device;
    ino_t inode;
};

/* All who have one number at one time: see tracker_walk_next. */
struct tracker_walk {
    const struct tracker_plane *plane;
    enum tracker_index index;
    uint64_t key;
    uint64_t when;
    uint32_t at;
    uint32_t retries;
    uint32_t busy;     /* rows that were passed and could not be read */
    uint32_t excluded; /* those that share the number, but that the configuration leaves out of answers */
    int is_host;
    int is_over;
    int only_vouched;
};

#define TRACKER_HEADER_LEN 4096u
#define TRACKER_ROW_LEN 512u
#define TRACKER_ENTRY_LEN 32u
#define TRACKER_ROW_FIELDS_LEN 192u
#define TRACKER_OLD_NS 5000000000ull
#define TRACKER_MAX_CAPACITY (1u << 20)

#ifdef __cplusplus
#define TRACKER_ASSERT(claim) static_assert(claim, #claim)
#else
#define TRACKER_ASSERT(claim) _Static_assert(claim, #claim)
#endif
TRACKER_ASSERT(sizeof(struct tracker_row) == TRACKER_ROW_FIELDS_LEN);
TRACKER_ASSERT(offsetof(struct tracker_row, kind) == 56);
TRACKER_ASSERT(offsetof(struct tracker_row, text_len) == 144);
TRACKER_ASSERT(offsetof(struct tracker_header, changes) == 152);
TRACKER_ASSERT(offsetof(struct tracker_header, truncated) == 208);

/* ------------------------------------------------------------------------------------------------- words and locks */

static inline uint64_t tracker_load_(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_RELAXED); }

/* Notes a sequence lock; 0 while it is odd. */
static inline int tracker_begin_(const uint64_t *lock, uint64_t *noted) {
    *noted = __atomic_load_n(lock, __ATOMIC_ACQUIRE);
    return (*noted & 1) == 0;
}

/* Whether what was read since then is one state. */
static inline int tracker_end_(const uint64_t *lock, uint64_t noted) {
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    return tracker_load_(lock) == noted;
}

static inline void tracker_pause_(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

/* A field of the header; `at` is its offset. */
static inline uint64_t tracker_header64_(const struct tracker_plane *plane, size_t at) {
    return tracker_load_(plane->words + at / 8);
}

static inline uint32_t tracker_header32_(const struct tracker_plane *plane, size_t at) {
    return (uint32_t)(tracker_load_(plane->words + at / 8) >> (at % 8 * 8));
}

#define TRACKER_FIELD(plane, field) tracker_header64_(plane, offsetof(struct tracker_header, field))
#define TRACKER_HALF(plane, field) tracker_header32_(plane, offsetof(struct tracker_header, field))

#ifdef TRACKER_PLANE_GUARD
static inline int tracker_guard_(const void *start, size_t len);
static inline void tracker_unguard_(const void *start);
static inline int tracker_is_broken(const struct tracker_plane *plane);
#else
static inline int tracker_is_broken(const struct tracker_plane *plane) {
    (void)plane;
    return 0;
}
#endif

/* ---------------------------------------------------------------------------------------------------- open and close */

static inline void tracker_plane_close(struct tracker_plane *plane) {
    if (plane->words != NULL) {
        munmap((void *)(uintptr_t)plane->words, plane->len);
#ifdef TRACKER_PLANE_GUARD
        tracker_unguard_(plane->words);
#endif
    }
    plane->words = NULL;
}

/* Whether the file was written since this machine was started last. */
static inline int tracker_is_of_this_boot_(const uint8_t *theirs) {
    char text[64] = "";
    char ours[40] = "";
    size_t len = 0;
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 1;
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    for (ssize_t at = 0; at < got && len < 32; at++)
        if (text[at] != '-' && text[at] != '\n')
            ours[len++] = text[at];
    char wanted[40];
    for (size_t at = 0; at < 16; at++)
        snprintf(wanted + 2 * at, 3, "%02x", (unsigned)theirs[at]);
    return len != 32 || memcmp(ours, wanted, 32) == 0;
}

/* A part of the file that the header names, in words; 0 where it is not within the file. */
static inline int tracker_section_(uint64_t at, uint64_t size, uint64_t file_len, size_t *words_at) {
    if (at < TRACKER_HEADER_LEN || at % 8 != 0 || size % 8 != 0 || at > file_len || size > file_len - at)
        return 0;
    *words_at = (size_t)(at / 8);
    return 1;
}

/* Why a header cannot be read, or NULL. Fills in where everything is. */
static inline const char *tracker_check_(struct tracker_plane *plane, const struct tracker_header *header, uint64_t len,
                                         char *room, size_t room_len) {
    if (memcmp(header->magic, "TRKPLANE", 8) != 0)
        return "this is no plane: it does not begin with `TRKPLANE`; check the path";
    if (header->version != TRACKER_PLANE_VERSION) {
        snprintf(room, room_len,
                 "the plane has layout version %u, and this reader reads version %u: use a reader of the same release as "
                 "the tracker that writes the plane",
                 (unsigned)header->version, TRACKER_PLANE_VERSION);
        return room;
    }
    if (header->schema != TRACKER_PLANE_SCHEMA) {
        snprintf(room, room_len,
                 "the plane has schema 0x%016llx, and this reader reads 0x%016llx: use a reader of the same release as "
                 "the tracker that writes the plane",
                 (unsigned long long)header->schema, (unsigned long long)TRACKER_PLANE_SCHEMA);
        return room;
    }
    if (header->file_len > len) {
        snprintf(room, room_len, "the plane was cut: %llu of %llu bytes are left; restart the tracker",
                 (unsigned long long)len, (unsigned long long)header->file_len);
        return room;
    }
    const uint32_t entries = header->entries;
    const uint64_t index_len = (uint64_t)entries * TRACKER_ENTRY_LEN;
    int is_sound = header->header_len == TRACKER_HEADER_LEN && header->row_len == TRACKER_ROW_LEN &&
                   header->entry_len == TRACKER_ENTRY_LEN && header->capacity != 0 &&
                   header->capacity <= TRACKER_MAX_CAPACITY && entries != 0 && (entries & (entries - 1)) == 0 &&
                   entries <= 4 * TRACKER_MAX_CAPACITY && header->file_len <= (1ull << 32) &&
                   tracker_section_(header->rows_at, (uint64_t)header->capacity * TRACKER_ROW_LEN, header->file_len,
                                    &plane->rows_at) &&
                   tracker_section_(header->texts_at, header->texts_len, header->file_len, &plane->texts_at);
    for (int index = 0; is_sound && index < 4; index++)
        is_sound = tracker_section_(header->index_at[index], index_len, header->file_len, &plane->index_at[index]);
    if (!is_sound)
        return "the plane is broken: its header says what cannot be; restart the tracker, which makes a new one";
    if (!tracker_is_of_this_boot_(header->boot_id))
        return "it is of an earlier boot of this machine: start `tracker run`";
    plane->capacity = header->capacity;
    plane->entries = entries;
    plane->texts_end = plane->texts_at + (size_t)(header->texts_len / 8);
    plane->len = (size_t)header->file_len;
    return NULL;
}

/* Opens and checks the plane at a path, the usual one where it is NULL. 0, or -1 with what is wrong, and what to do about
 * it, in `error` (TRACKER_ERROR_LEN bytes). */
static inline int tracker_plane_open(struct tracker_plane *plane, const char *path, char *error) {
    struct tracker_header header;
    struct stat status;
    char room[320];
    const char *why = NULL;
    if (path == NULL)
        path = TRACKER_PLANE_PATH;
    memset(plane, 0, sizeof *plane);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) {
        why = errno == ENOENT                    ? "there is none: start `tracker run`, or name the path of its `[plane]`"
              : errno == EACCES                  ? "permission denied: run as root, or as a member of the group that "
                                                   "`group` in the tracker's `[plane]` names"
              : errno == ELOOP || errno == ENXIO ? "not a regular file: name the plane itself, not a link to it"
                                                 : strerror(errno);
    } else if (fstat(fd, &status) != 0) {
        why = strerror(errno);
    } else if (!S_ISREG(status.st_mode)) {
        why = "not a regular file: name the plane itself, not a link to it";
    } else if (status.st_size < (off_t)TRACKER_HEADER_LEN ||
               pread(fd, &header, sizeof header, 0) != (ssize_t)sizeof header) {
        snprintf(room, sizeof room, "%lld bytes are too few for a plane: start the tracker, which makes a new one",
                 (long long)status.st_size);
        why = room;
    } else {
        why = tracker_check_(plane, &header, (uint64_t)status.st_size, room, sizeof room);
    }
    if (why == NULL) {
        void *start = mmap(NULL, plane->len, PROT_READ, MAP_SHARED, fd, 0);
        if (start == MAP_FAILED) {
            why = strerror(errno);
        } else {
            plane->words = (const uint64_t *)start;
            plane->device = status.st_dev;
            plane->inode = status.st_ino;
#ifdef TRACKER_PLANE_GUARD
            if (tracker_guard_(start, plane->len) != 0) {
                munmap(start, plane->len);
                plane->words = NULL;
                why = "too many planes are open already: close some";
            }
#endif
        }
    }
    if (fd >= 0)
        close(fd);
    if (why == NULL)
        return 0;
    snprintf(error, TRACKER_ERROR_LEN, "open the plane `%s`: %s", path, why);
    return -1;
}

/* ------------------------------------------------------------------------------------------------------------ look up */

/* The `at`-th place to look for a key. */
static inline uint32_t tracker_place_(uint64_t key, uint32_t at, uint32_t entries) {
    const uint64_t hash = key * 0x9E3779B97F4A7C15ull;
    return ((uint32_t)(hash >> 32) + at * ((uint32_t)hash | 1u)) & (entries - 1u);
}

static inline int tracker_is_within_(uint64_t when, uint64_t opened, uint64_t closed) {
    return when == TRACKER_NOW ? closed == TRACKER_OPEN : opened <= when && when < closed;
}

static inline int tracker_is_vouched_for_(uint8_t kind) { return kind == 1 || kind == 2; }

static inline const uint64_t *tracker_row_words_(const struct tracker_plane *plane, uint32_t number) {
    return number < plane->capacity ? plane->words + plane->rows_at + (size_t)number * (TRACKER_ROW_LEN / 8) : NULL;
}

/* The next row of a walk, excluded ones and all; 0 at the end. */
static inline int tracker_walk_any_(struct tracker_walk *walk, struct tracker_found *found) {
    const struct tracker_plane *plane = walk->plane;
    while (!walk->is_over) {
        const uint64_t *entry = plane->words + plane->index_at[walk->index] +
                                (size_t)tracker_place_(walk->key, walk->at, plane->entries) * (TRACKER_ENTRY_LEN / 8);
        int is_found = 0;
        /* Again, while what is at this place changes. */
        for (;;) {
            const uint64_t tail = tracker_load_(entry + 3);
            const uint32_t number = (uint32_t)tail;
            walk->is_over = tail >> 32 == 0;
            if (tracker_load_(entry) != walk->key ||
                !tracker_is_within_(walk->when, tracker_load_(entry + 1), tracker_load_(entry + 2)))
                break;
            const uint64_t *row = tracker_row_words_(plane, number);
            uint64_t noted = 0;
            if (row == NULL) {
                walk->busy++;
                break;
            }
            int is_whole = tracker_begin_(row, &noted);
            if (is_whole) {
                /* Of entries, only those of the row cannot change while the row does not. */
                is_whole = tracker_load_(entry) == walk->key && (uint32_t)tracker_load_(entry + 3) == number;
                const uint64_t flags = tracker_load_(row + 1);
                const uint64_t namespaces = tracker_load_(row + 2);
                const uint64_t kind = tracker_load_(row + 7);
                uint64_t opened = tracker_load_(row + 4);
                uint64_t closed = tracker_load_(row + 5);
                uint64_t key = walk->index == TRACKER_NETNS ? namespaces >> 32 : (uint32_t)namespaces;
                if (walk->index == TRACKER_CGROUP) {
                    key = tracker_load_(row + offsetof(struct tracker_row, cgroup) / 8);
                } else if (walk->index == TRACKER_PID) {
                    key = tracker_load_(row + 3) >> 32;
                    opened = tracker_load_(row + offsetof(struct tracker_row, init_opened) / 8);
                    closed = tracker_load_(row + offsetof(struct tracker_row, init_closed) / 8);
                }
                is_whole = tracker_end_(row, noted) && is_whole;
                if (is_whole) {
                    if ((flags & TRACKER_ROW_IN_USE) == 0 || key != walk->key) {
                        walk->busy++; /* the tracker leaves no entry for another row */
                    } else if (tracker_is_within_(walk->when, opened, closed)) {
                        found->number = number;
                        found->uses = (uint32_t)(flags >> 32);
                        found->lock = noted;
                        found->flags = (uint32_t)flags;
                        found->kind = (uint8_t)kind;
                        is_found = 1;
                    }
                    break;
                }
            }
            if (walk->retries == 0) {
                walk->busy++;
                break;
            }
            walk->retries--;
            tracker_pause_();
        }
        walk->at++;
        if (walk->at >= plane->entries)
            walk->is_over = 1;
        if (is_found)
            return 1;
    }
    return 0;
}

/* Begins to look for all who have a number at a time (TRACKER_NOW, or ns of CLOCK_BOOTTIME). */
static inline void tracker_walk_begin(struct tracker_walk *walk, const struct tracker_plane *plane,
                                      enum tracker_index index, uint64_t key, uint64_t when) {
    uint64_t host = 0;
    if (index == TRACKER_MNTNS)
        host = TRACKER_HALF(plane, host_mntns);
    else if (index == TRACKER_NETNS)
        host = TRACKER_HALF(plane, host_netns);
    else if (index == TRACKER_CGROUP)
        host = TRACKER_FIELD(plane, host_cgroup);
    walk->plane = plane;
    walk->index = index;
    walk->key = key;
    walk->when = when;
    walk->at = 0;
    walk->retries = TRACKER_RETRIES;
    walk->busy = 0;
    walk->excluded = 0;
    walk->is_host = key != 0 && key == host;
    walk->is_over = key == 0 || walk->is_host;
    walk->only_vouched = 0;
    if (index == TRACKER_CGROUP) {
        /* What nobody vouches for is left out where somebody vouches for another. */
        struct tracker_walk ahead = *walk;
        struct tracker_found found;
        while (!walk->only_vouched && tracker_walk_any_(&ahead, &found))
            walk->only_vouched = tracker_is_vouched_for_(found.kind);
    }
}

/* The next container; 0 at the end, when `busy`, `excluded` and `is_host` say what else there is to know. */
static inline int tracker_walk_next(struct tracker_walk *walk, struct tracker_found *found) {
    while (tracker_walk_any_(walk, found)) {
        if (walk->only_vouched && !tracker_is_vouched_for_(found->kind))
            continue;
        if ((found->flags & TRACKER_ROW_EXCLUDED) == 0)
            return 1;
        walk->excluded++;
    }
    return 0;
}

/* Which container a mount ns or init pid belongs to. For net ns and cgroups, which may be shared: tracker_walk_begin. */
static inline enum tracker_answer tracker_find(const struct tracker_plane *plane, enum tracker_index index, uint64_t key,
                                               uint64_t when, struct tracker_found *found) {
    struct tracker_walk walk;
    tracker_walk_begin(&walk, plane, index, key, when);
    if (walk.is_host)
        return TRACKER_HOST;
    const int is_found = tracker_walk_any_(&walk, found);
    if (tracker_is_broken(plane) || (!is_found && walk.busy > 0))
        return TRACKER_BUSY;
    return is_found && (found->flags & TRACKER_ROW_EXCLUDED) == 0 ? TRACKER_CONTAINER : TRACKER_UNKNOWN;
}

/* Reads a row and its texts once; 0 where it is being changed, or where its texts are broken. */
static inline int tracker_read_row_(const struct tracker_plane *plane, uint32_t number, struct tracker_container *into) {
    const uint64_t *words = tracker_row_words_(plane, number);
    uint64_t copy[TRACKER_ROW_FIELDS_LEN / 8];
    if (words == NULL || !tracker_begin_(words, &copy[0]))
        return 0;
    for (size_t at = 1; at < TRACKER_ROW_FIELDS_LEN / 8; at++)
        copy[at] = tracker_load_(words + at);
    memcpy(&into->row, copy, sizeof into->row);
    into->number = number;
    const struct tracker_row *row = &into->row;
    size_t len = 0;
    for (int text = 0; text < 6; text++)
        len += row->text_lens[text];
    /* Whatever the numbers are: they may be of two states, as long as the lock was not looked at again. */
    const uint64_t first = row->text_at / 8;
    const uint64_t end = first + (len + 7) / 8;
    const uint64_t own = (uint64_t)(words - plane->words) + TRACKER_ROW_FIELDS_LEN / 8;
    const int is_own = first == own && len <= TRACKER_ROW_LEN - TRACKER_ROW_FIELDS_LEN;
    const int is_slot = first >= plane->texts_at && first <= plane->texts_end && end <= plane->texts_end;
    if (row->text_at % 8 != 0 || len > TRACKER_TEXT_MAX || len != row->text_len || (!is_own && !is_slot && len != 0))
        return 0;
    char bytes[TRACKER_TEXT_MAX];
    for (size_t at = 0; at < len; at += 8) {
        const uint64_t word = tracker_load_(plane->words + first + at / 8);
        memcpy(bytes + at, &word, len - at < 8 ? len - at : 8);
    }
    if (!tracker_end_(words, copy[0]) || tracker_is_broken(plane))
        return 0;
    const char **texts[6] = {&into->id,            &into->name,  &into->pod,
                             &into->pod_namespace, &into->image, &into->runtime};
    size_t from = 0;
    char *to = into->texts;
    for (int text = 0; text < 6; text++) {
        const size_t text_len = row->text_lens[text];
        memcpy(to, bytes + from, text_len);
        to[text_len] = '\0';
        *texts[text] = to;
        from += text_len;
        to += text_len + 1;
    }
    return 1;
}

/* The whole row that was found, and its texts; 0 where it has changed since: look it up again. */
static inline int tracker_read(const struct tracker_plane *plane, const struct tracker_found *found,
                               struct tracker_container *into) {
    return tracker_read_row_(plane, found->number, into) && into->row.lock == found->lock;
}

/* tracker_find and tracker_read, of one moment. */
static inline enum tracker_answer tracker_lookup(const struct tracker_plane *plane, enum tracker_index index,
                                                 uint64_t key, uint64_t when, struct tracker_container *into) {
    for (uint32_t retry = 0; retry < TRACKER_RETRIES; retry++) {
        struct tracker_found found;
        const enum tracker_answer answer = tracker_find(plane, index, key, when, &found);
        if (answer != TRACKER_CONTAINER || tracker_read(plane, &found, into))
            return answer;
        tracker_pause_();
    }
    return TRACKER_BUSY;
}

/* The next container of all, from row `*at` on, which is moved behind it; 0 at the end. Begin with 0. */
static inline int tracker_next(const struct tracker_plane *plane, uint32_t *at, struct tracker_container *into) {
    uint32_t used = TRACKER_HALF(plane, rows_used);
    if (used > plane->capacity)
        used = plane->capacity;
    while (*at < used) {
        const uint32_t number = (*at)++;
        for (uint32_t retry = 0; retry < TRACKER_RETRIES; retry++) {
            if (tracker_read_row_(plane, number, into)) {
                if ((into->row.flags & TRACKER_ROW_IN_USE) != 0 && (into->row.flags & TRACKER_ROW_EXCLUDED) == 0)
                    return 1;
                break;
            }
            tracker_pause_();
        }
    }
    return 0;
}

/* ------------------------------------------------------------------------------------------------- the owner, changes */

/* Now, in the plane's time. */
static inline uint64_t tracker_now_ns(void) {
    struct timespec now = {0, 0};
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

/* Whether the process that started then is still running; a zombie is not. */
static inline int tracker_is_there_(uint32_t pid, uint64_t start_ticks) {
    char path[40];
    char stat[1024];
    snprintf(path, sizeof path, "/proc/%u/stat", (unsigned)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    const ssize_t len = read(fd, stat, sizeof stat - 1);
    close(fd);
    stat[len > 0 ? len : 0] = '\0';
    /* The program's name stands in parentheses, and may contain anything. The start time is the 22nd field. */
    const char *field = strrchr(stat, ')');
    if (field == NULL || field[1] == '\0' || strchr("ZX", field[2]) != NULL)
        return 0;
    for (int number = 2; field != NULL && number < 22; number++)
        field = strchr(field + 1, ' ');
    return field != NULL && strtoull(field, NULL, 10) == start_ticks;
}

/* Whether somebody keeps the plane true. */
static inline enum tracker_condition tracker_condition(const struct tracker_plane *plane) {
    const uint32_t flags = TRACKER_HALF(plane, flags);
    const uint64_t now = tracker_now_ns();
    const uint64_t heartbeat = TRACKER_FIELD(plane, heartbeat);
    if (tracker_is_broken(plane))
        return TRACKER_BROKEN;
    if (flags & TRACKER_PLANE_SUPERSEDED)
        return TRACKER_SUPERSEDED;
    if (flags & TRACKER_PLANE_STOPPED)
        return TRACKER_STOPPED;
    if (now < heartbeat || now - heartbeat < TRACKER_OLD_NS)
        return TRACKER_FRESH;
    return tracker_is_there_(TRACKER_HALF(plane, owner_pid), TRACKER_FIELD(plane, owner_start)) ? TRACKER_OLD
                                                                                               : TRACKER_GONE;
}

/* How often something was published. Wraps. */
static inline uint32_t tracker_changes(const struct tracker_plane *plane) {
    const uint32_t changes = TRACKER_HALF(plane, changes);
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    return changes;
}

/* Waits until something is published after tracker_changes was `seen`. 1; 0 when the time is over; -1 with errno. */
static inline int tracker_wait(const struct tracker_plane *plane, uint32_t seen, unsigned timeout_ms) {
    const uint64_t deadline = tracker_now_ns() + (uint64_t)timeout_ms * 1000000ull;
    const uint32_t *futex = (const uint32_t *)(const void *)plane->words + offsetof(struct tracker_header, changes) / 4;
    for (;;) {
        const uint64_t now = tracker_now_ns();
        if (tracker_changes(plane) != seen)
            return 1;
        if (tracker_is_broken(plane)) {
            errno = EIO;
            return -1;
        }
        if (now >= deadline)
            return 0;
        struct timespec left;
        left.tv_sec = (time_t)((deadline - now) / 1000000000ull);
        left.tv_nsec = (long)((deadline - now) % 1000000000ull);
        /* Not private: who wakes is another process. */
        if (syscall(SYS_futex, futex, FUTEX_WAIT, seen, &left, NULL, 0) != 0 && errno != EAGAIN && errno != EINTR &&
            errno != ETIMEDOUT)
            return -1;
    }
}

/* Opens the path again where another file has taken this one's place. 1 if it did; 0; -1 with `error`. Where there is no
 * other plane to open, this one stays, with what it says. */
static inline int tracker_reopen_if_superseded(struct tracker_plane *plane, const char *path, char *error) {
    struct stat there;
    struct tracker_plane fresh;
    const int is_other = stat(path == NULL ? TRACKER_PLANE_PATH : path, &there) == 0 &&
                         (there.st_dev != plane->device || there.st_ino != plane->inode);
    if (!is_other && !tracker_is_broken(plane) && (TRACKER_HALF(plane, flags) & TRACKER_PLANE_SUPERSEDED) == 0)
        return 0;
    if (tracker_plane_open(&fresh, path, error) != 0)
        return -1;
    tracker_plane_close(plane);
    *plane = fresh;
    return 1;
}

/* Names of the numbers in a row; "unknown" for others. */
static inline const char *tracker_kind_name(uint8_t kind) {
    static const char *const names[] = {"unknown", "container", "sandbox", "unmanaged", "sandboxed-process"};
    return names[kind < 5 ? kind : 0];
}

static inline const char *tracker_state_name(uint8_t state) {
    static const char *const names[] = {"unknown", "provisional", "created", "running", "paused", "exited", "aborted"};
    return names[state < 7 ? state : 0];
}

static inline const char *tracker_grade_name(uint8_t grade) {
    static const char *const names[] = {"unknown", "held", "let-go", "first-exec", "observed"};
    return names[grade < 5 ? grade : 0];
}

static inline const char *tracker_condition_name(enum tracker_condition condition) {
    static const char *const names[] = {"fresh", "old", "gone", "stopped", "superseded", "broken"};
    return names[condition];
}

/* --------------------------------------------------------------------------------------------------------- the guard */
#ifdef TRACKER_PLANE_GUARD

/*
 * A read behind the end of a file that was cut is a SIGBUS. The handler puts zeros in the place of the whole mapping, so
 * that nothing read from it before is confirmed by what is read afterwards, and notes that it is broken. Faults anywhere
 * else are the previous handler's. Set up with the first plane; each source file that includes this one has its own, and
 * they are chained.
 */
#define TRACKER_GUARDED 16

static struct {
    uintptr_t start; /* 0 is free, 1 is being taken */
    size_t len;
    int is_broken;
} tracker_guarded_[TRACKER_GUARDED];

static struct sigaction tracker_before_guard_;

static inline void tracker_on_sigbus_(int signal_number, siginfo_t *info, void *context) {
    const uintptr_t address = (uintptr_t)info->si_addr;
    for (int at = 0; info->si_code > 0 && at < TRACKER_GUARDED; at++) {
        const uintptr_t start = __atomic_load_n(&tracker_guarded_[at].start, __ATOMIC_ACQUIRE);
        const size_t len = tracker_guarded_[at].len;
        if (start <= 1 || address < start || address - start >= len)
            continue;
        const int before = errno;
        __atomic_store_n(&tracker_guarded_[at].is_broken, 1, __ATOMIC_RELAXED);
        const void *zeros = mmap((void *)start, len, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        errno = before;
        if (zeros != MAP_FAILED)
            return;
    }
    if (tracker_before_guard_.sa_flags & SA_SIGINFO)
        tracker_before_guard_.sa_sigaction(signal_number, info, context);
    else if (tracker_before_guard_.sa_handler != SIG_DFL && tracker_before_guard_.sa_handler != SIG_IGN)
        tracker_before_guard_.sa_handler(signal_number);
    else
        signal(signal_number, SIG_DFL); /* the faulting instruction runs again, and ends the process */
}

static inline int tracker_guard_(const void *start, size_t len) {
    static int is_set_up;
    if (!__atomic_exchange_n(&is_set_up, 1, __ATOMIC_ACQ_REL)) {
        struct sigaction ours;
        memset(&ours, 0, sizeof ours);
        ours.sa_sigaction = tracker_on_sigbus_;
        ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
        sigaction(SIGBUS, NULL, &tracker_before_guard_);
        sigaction(SIGBUS, &ours, NULL);
    }
    for (int at = 0; at < TRACKER_GUARDED; at++) {
        uintptr_t free_place = 0;
        if (__atomic_compare_exchange_n(&tracker_guarded_[at].start, &free_place, 1, 0, __ATOMIC_ACQUIRE,
                                        __ATOMIC_RELAXED)) {
            tracker_guarded_[at].len = len;
            tracker_guarded_[at].is_broken = 0;
            __atomic_store_n(&tracker_guarded_[at].start, (uintptr_t)start, __ATOMIC_RELEASE);
            return 0;
        }
    }
    return -1;
}

static inline void tracker_unguard_(const void *start) {
    for (int at = 0; at < TRACKER_GUARDED; at++)
        if (__atomic_load_n(&tracker_guarded_[at].start, __ATOMIC_ACQUIRE) == (uintptr_t)start)
            __atomic_store_n(&tracker_guarded_[at].start, 0, __ATOMIC_RELEASE);
}

static inline int tracker_is_broken(const struct tracker_plane *plane) {
    for (int at = 0; at < TRACKER_GUARDED; at++)
        if (__atomic_load_n(&tracker_guarded_[at].start, __ATOMIC_RELAXED) == (uintptr_t)plane->words)
            return __atomic_load_n(&tracker_guarded_[at].is_broken, __ATOMIC_RELAXED);
    return 0;
}
#endif

#ifdef __cplusplus
}
#endif
#endif
