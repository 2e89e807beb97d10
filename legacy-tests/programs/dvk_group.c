/* The group services over dvk_group.h, by two programs of a DC that meet at barriers:
 *
 *     dvk_group NAME first
 *     dvk_group NAME second
 *     dvk_group NAME holder       takes the lock NAME.held and keeps it until it is killed
 *     dvk_group NAME heir         gets it then
 *
 * NAME is in front of all keys and names. Both check what they get. */
#define _GNU_SOURCE
#include "check.h"
#include <dvk_group.h>
#include <inttypes.h>

enum { CASTS = 20, LONG = 20000 };

static dvk_group *session;
static const char *name;
static int is_first;

/* NAME.part, until the program ends. */
static const char *called(const char *part) {
    char *text;
    return asprintf(&text, "%s.%s", name, part) < 0 ? NULL : text;
}

/* Both are here. */
static void meet(void) {
    IS(dvk_barrier(session, called("meet"), 2, LONG), 0);
}

static int put(const char *key, const char *value, uint64_t lease) {
    return dvk_kv_put(session, key, strlen(key), value, strlen(value), lease, NULL);
}

static int get(const char *key, const char *value) {
    char got[64];
    int length = dvk_kv_get(session, key, strlen(key), got, sizeof got, NULL);
    return length < 0 ? length : length == (int)strlen(value) && !memcmp(got, value, length);
}

static void errors(void) {
    char text[64];
    const char *key = called("none");
    IS(dvk_kv_get(session, NULL, 3, text, sizeof text, NULL), -EDVSFAULT);
    IS(dvk_kv_get(NULL, key, 3, text, sizeof text, NULL), -EDVSFAULT);
    IS(dvk_kv_range(session, "", 0, NULL, 0, 9, NULL), -EDVSFAULT);
    IS(dvk_lock(session, NULL, DVK_NOWAIT, NULL), -EDVSFAULT);
    IS(dvk_lock(session, "\xff", DVK_NOWAIT, NULL), -EDVSINVAL);
    IS(dvk_lock(session, "", DVK_NOWAIT, NULL), -EDVSNOSPC);
    IS(dvk_group_open(NULL), -EDVSFAULT);
    IS(dvk_lease_grant(session, 60000, NULL), -EDVSFAULT);
    IS(dvk_group_receive(session, key, 0, DVK_NOWAIT, NULL), -EDVSFAULT);
    IS(get(key, ""), -EDVSNOENT);
    IS(dvk_group_error(text, 6), 13);
    IS(strcmp(text, "there"), 0);
    IS(dvk_group_error(NULL, 0), 13);
    dvk_group_close(NULL);
    dvk_kv_free(NULL);
    dvk_group_free(NULL);
    static char large[DVK_VALUE_MAX + 1];
    IS(dvk_kv_put(session, key, strlen(key), large, sizeof large, DVK_NO_LEASE, NULL), -EDVSNOSPC);
}

static void keys(void) {
    const char *key = called("k");
    if (is_first) {
        IS(put(key, "one", DVK_NO_LEASE), 0);
        IS(put(called("k1"), "", DVK_NO_LEASE), 0);
    }
    meet();
    IS(get(key, "one"), 1);
    dvk_kv_entry info;
    IS(dvk_kv_get(session, key, strlen(key), NULL, 0, &info), -EDVSMSGSIZE);
    IS(info.value_len, 3);
    IS(info.version, 1);
    IS(info.created == info.modified, 1);
    IS(dvk_kv_get(session, called("k1"), strlen(called("k1")), NULL, 0, NULL), 0);
    dvk_kv_list *list;
    IS(dvk_kv_range(session, key, strlen(key), called("l"), strlen(called("l")), 9, &list), 0);
    IS(list->count, 2);
    IS(list->more, 0);
    IS(memcmp(list->entries[0].key, key, list->entries[0].key_len), 0);
    IS(memcmp(list->entries[0].value, "one", list->entries[0].value_len), 0);
    IS(list->entries[1].value_len, 0);
    dvk_kv_free(list);
    meet();
    /* Of two who swap at a time one succeeds. */
    uint64_t revision = 0;
    int swapped = dvk_kv_cas(session, key, strlen(key), info.modified, "two", 3, DVK_NO_LEASE, &revision);
    IS(swapped == 0 || swapped == -EDVSREVISION, 1);
    IS(revision > info.modified, 1);
    IS(put(called(swapped ? "loser" : "winner"), "", DVK_NO_LEASE), 0);
    meet();
    IS(get(called("loser"), ""), 1);
    IS(get(called("winner"), ""), 1);
    meet();
    if (is_first) {
        IS(dvk_kv_cas(session, key, strlen(key), revision, NULL, 0, DVK_NO_LEASE, NULL), 0);
        IS(dvk_kv_delete(session, called("winner"), strlen(called("winner"))), 1);
        IS(dvk_kv_delete(session, called("winner"), strlen(called("winner"))), 0);
    }
    meet();
    IS(get(key, ""), -EDVSNOENT);
}

/* The second watches what the first does. */
static void watches(void) {
    const char *key = called("w"), *end = called("x");
    dvk_kv_list *list;
    uint64_t from = 0;
    IS(dvk_kv_watch(session, key, strlen(key), end, strlen(end), 0, DVK_FOREVER, &list), 0);
    IS(list->count, 0);
    from = list->revision;
    dvk_kv_free(list);
    IS(dvk_kv_watch(session, key, strlen(key), end, strlen(end), from, DVK_NOWAIT, &list), -EDVSTIMEDOUT);
    meet();
    if (is_first) {
        uint64_t lease;
        IS(dvk_lease_grant(session, 1, &lease), -EDVSNOSPC);
        IS(dvk_lease_grant(session, 60000, &lease), 0);
        IS(put(key, "leased", lease), 0);
        IS(dvk_lease_renew(session, lease), 0);
        IS(dvk_lease_revoke(session, lease), 0);
        IS(dvk_lease_revoke(session, lease), -EDVSNOTHELD);
        IS(put(key, "late", lease), -EDVSNOTHELD);
    } else {
        size_t seen = 0;
        while (seen < 2 && !check_failures) {
            IS(dvk_kv_watch(session, key, strlen(key), end, strlen(end), from, LONG, &list), 0);
            for (size_t at = 0; at < list->count; at++, seen++) {
                IS(list->entries[at].deleted, seen);
                IS(list->entries[at].modified >= from, 1);
                IS(list->entries[at].value_len, seen ? 0 : 6);
            }
            from = list->revision;
            dvk_kv_free(list);
        }
    }
    meet();
}

static void locks(void) {
    uint64_t first_token = 0, token = 0, epoch = 0;
    if (is_first) {
        IS(dvk_lock(session, called("lock"), DVK_FOREVER, &first_token), 0);
        IS(dvk_campaign(session, called("lead"), "1st", 3, DVK_FOREVER, &epoch), 0);
        /* What it has it is given again, and keeps; with no time there is enough for what waits for nobody. */
        uint64_t again = 0;
        IS(dvk_lock(session, called("lock"), DVK_NOWAIT, &again), 0);
        IS(again == first_token, 1);
        IS(dvk_lock(session, called("lock"), 1, &again), 0);
        IS(again == first_token, 1);
        IS(dvk_campaign(session, called("lead"), "first", 5, DVK_NOWAIT, &again), 0);
        IS(again == epoch, 1);
        IS(dvk_barrier(session, called("own"), 1, DVK_NOWAIT), 0);
    }
    meet();
    if (!is_first) {
        char value[8];
        IS(dvk_lock(session, called("lock"), DVK_NOWAIT, NULL), -EDVSBUSY);
        IS(dvk_lock(session, called("lock"), 30, NULL), -EDVSTIMEDOUT);
        IS(dvk_campaign(session, called("lead"), "second", 6, DVK_NOWAIT, NULL), -EDVSTIMEDOUT);
        IS(dvk_barrier(session, called("own"), 2, DVK_NOWAIT), -EDVSTIMEDOUT);
        IS(dvk_unlock(session, called("lock")), -EDVSNOTHELD);
        IS(dvk_leader(session, called("lead"), value, sizeof value, &epoch), 5);
        IS(memcmp(value, "first", 5), 0);
        IS(dvk_leader(session, called("lead"), value, 4, NULL), -EDVSMSGSIZE);
        IS(dvk_leader(session, called("nobody"), value, sizeof value, NULL), -EDVSNOENT);
    }
    meet();
    if (is_first) {
        IS(dvk_unlock(session, called("lock")), 0);
        IS(dvk_resign(session, called("lead")), 0);
    } else {
        uint64_t second;
        IS(dvk_lock(session, called("lock"), LONG, &token), 0);
        IS(dvk_campaign(session, called("lead"), "second", 6, LONG, &second), 0);
        IS(token > first_token, 1);
        IS(second > epoch, 1);
    }
    meet();
    IS(dvk_barrier(session, called("alone"), 3, 30) < 0, 1);
}

/* The first is there before, the second gets the state from it. Both hash all messages behind. */
static void groups(void) {
    const char *group = called("group");
    uint64_t own, number = 0, hash = 0;
    dvk_group_item *item;
    IS(dvk_group_cast(session, group, "x", 1, NULL), -EDVSNOTHELD);
    if (is_first) {
        /* A member's number is that of its session and tells nothing of when it joined: that of the first is the greater one
         * here. */
        dvk_group_close(session);
        IS(dvk_group_open(&session), 0);
        IS(dvk_group_join(session, group, &own), 0);
        IS(dvk_group_cast(session, group, "before", 6, &number), 0);
    }
    meet();
    if (!is_first)
        IS(dvk_group_join(session, group, &own), 0);
    meet();
    for (int cast = 0; cast < CASTS; cast++)
        IS(dvk_group_cast(session, group, is_first ? "a" : "b", 1, NULL), 0);
    uint64_t after = 0;
    int messages = 0, states = 0;
    while (messages < 2 * CASTS + 1 - states && !check_failures) {
        IS(dvk_group_receive(session, group, after, LONG, &item), 0);
        if (check_failures)
            return;
        IS(item->number > after, 1);
        after = item->number;
        switch (item->kind) {
        case DVK_ITEM_MESSAGE:
            messages++;
            if (item->data_len == 1)
                hash = hash * 31 + *(const unsigned char *)item->data;
            else
                IS(memcmp(item->data, "before", item->data_len), 0);
            break;
        case DVK_ITEM_VIEW:
            /* The longest member stands first. */
            IS(item->members[is_first ? 0 : item->member_count - 1], own);
            if (item->gives)
                IS(dvk_group_give(session, group, item->number, "state", 5), 0);
            break;
        case DVK_ITEM_STATE:
            IS(messages, 0);
            IS(is_first, 0);
            IS(memcmp(item->data, "state", item->data_len), 0);
            states++;
            break;
        }
        dvk_group_free(item);
    }
    if (check_failures)
        return;
    IS(states, !is_first);
    IS(dvk_group_receive(session, group, after, DVK_NOWAIT, &item), -EDVSTIMEDOUT);
    IS(dvk_group_receive(session, group, after + 1, DVK_NOWAIT, &item), -EDVSINVAL);
    char text[32];
    snprintf(text, sizeof text, "%" PRIu64, hash);
    IS(put(called(is_first ? "hash1" : "hash2"), text, DVK_NO_LEASE), 0);
    meet();
    IS(get(called("hash1"), text), 1);
    IS(get(called("hash2"), text), 1);
    meet();
    IS(dvk_group_leave(session, group), 0);
    IS(dvk_group_leave(session, group), -EDVSNOTHELD);
}

static void hold(void) {
    IS(dvk_lock(session, called("held"), DVK_FOREVER, NULL), 0);
    IS(put(called("mine"), "x", DVK_OWN_LEASE), 0);
    puts("held");
    fflush(stdout);
    for (;;)
        pause();
}

/* The holder is killed when this says that it waits. */
static void inherit(void) {
    uint64_t token;
    IS(dvk_lock(session, called("held"), DVK_NOWAIT, NULL), -EDVSBUSY);
    puts("waits");
    fflush(stdout);
    IS(dvk_lock(session, called("held"), LONG, &token), 0);
    IS(get(called("mine"), ""), -EDVSNOENT);
}

int main(int argc, char **argv) {
    if (argc != 3)
        return 2;
    name = argv[1];
    is_first = !strcmp(argv[2], "first");
    IS(dvk_group_open(&session), 0);
    if (check_failures)
        return 1;
    if (!strcmp(argv[2], "holder"))
        hold();
    if (!strcmp(argv[2], "heir")) {
        inherit();
    } else {
        errors();
        keys();
        watches();
        locks();
        groups();
    }
    dvk_group_close(session);
    if (!check_failures)
        puts("ok");
    return check_failures != 0;
}
