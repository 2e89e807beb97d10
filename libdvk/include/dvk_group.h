/* The services of the system group for C programs of a DC: dvk_group.h of libdvk_client.
 *
 * Keys and values, leases, locks, leader election, barriers, and totally ordered multicast with views. A majority of
 * the cluster's nodes agrees on each change: what was answered holds whichever node dies. Keys and names are the DC's
 * own; no program of another DC, nor the system, shares them.
 *
 * The calls follow etcd (keys, revisions, leases, elections), Chubby (locks with fencing tokens), and the group
 * communication (Spread) of Pessolani's prototype: views, total order, here always safe delivery.
 *
 * A dvk_group is a session. Locks, leaderships, places at barriers, memberships and keys with DVK_OWN_LEASE end with
 * it: when it is closed, when its process dies (or its dvkd does), or when its node has had no contact to the majority for
 * 3 s (-EDVSLOST from all calls: close it, and open another). Threads may share a session; 32 may wait in it at a time.
 * After fork the child has no part in it: it executes a program, or exits.
 *
 * Results are 0 or more, or a negative error (dvk.h's, or those below); dvk_group_error says why in a sentence.
 * Timeouts are milliseconds: DVK_NOWAIT, a number, or DVK_FOREVER. They are for others: the group has its time to answer
 * besides (milliseconds; a second while it elects a leader), so DVK_NOWAIT gets what is free or there. Calls
 * without one end after 10 s at most (-EDVSNOMAJORITY), or 20 s if dvkd is stopped. Signals do not end a wait. All calls may
 * return -EDVSNOMAJORITY, -EDVSFENCED, -EDVSLOST, -EDVSBADREQUEST (dvkd is not understood), -EDVSNOSPC (a limit, of sizes or
 * of what a DC may have), -EDVSINVAL (a name is not UTF-8, or as dvk_group_error says) and -EDVSFAULT (a pointer is NULL; it
 * may be only where that is said). Names are UTF-8, 1 to 256 bytes. Where length is 0 the pointer may be NULL.
 */
#ifndef DVK_GROUP_H
#define DVK_GROUP_H

#include <dvk.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EDVSNOENT 2         /* there is no such key, or no leader */
#define EDVSBUSY 16         /* the lock is somebody else's */
#define EDVSNOMAJORITY 400  /* no majority could be asked, or there is no group here; it may have happened */
#define EDVSFENCED 401      /* this node is cut off from the majority: nothing has happened */
#define EDVSREVISION 402    /* the key's last change was at another revision */
#define EDVSFORGOTTEN 403   /* changes are not remembered so far back: read the keys anew */
#define EDVSBROKEN 404      /* one of those at the barrier has died or given up */
#define EDVSNOTHELD 405     /* the lock, leadership, membership or lease is not this session's, or has ended */
#define EDVSLOST 406        /* the session is over, or dvkd; what it held may be somebody else's */

#define DVK_KEY_MAX 1024      /* bytes of a key */
#define DVK_VALUE_MAX 32768   /* of a value, a message, or what a candidate says */
#define DVK_STATE_MAX 65536   /* of a group's state */

typedef struct dvk_group dvk_group;

/* ---- sessions ---- */

/* Opens a session with the dvkd of this node, as a program of its DC (DVS_SOCKET, or where containers have it).
 * -EDVSNOTBIND: there is no DVS here. -EDVSCALLDENIED: this process lives in another DC. -EDVSINVAL: dvkd is of another
 * version (dvk_group_error names both). -EDVSNOMAJORITY: the node is alone, or dvkd does not answer for 10 s. -EDVSNOSPC: the
 * DC has 256 sessions on this node. */
int dvk_group_open(dvk_group **session);
/* Closes it, and ends what it holds. No thread may be using it. NULL is nothing. */
void dvk_group_close(dvk_group *session);
/* Why the last failed call of this thread to a function of this header failed: a sentence that ends with NUL, cut to room
 * bytes; text may be NULL if room is 0. Returns its whole length. */
int dvk_group_error(char *text, size_t room);

/* ---- keys and values ---- */

/* In place of a lease. */
#define DVK_NO_LEASE ((uint64_t)0)
#define DVK_OWN_LEASE (~(uint64_t)0) /* the key ends with this session */

/* A key and its value, or a change. Revisions count the changes of the DC's keys. */
typedef struct dvk_kv_entry {
    const void *key;
    size_t key_len;
    const void *value;
    size_t value_len;
    uint64_t created;  /* the revision that made the key; 0 in changes */
    uint64_t modified; /* the last that changed it, or that of the change */
    uint64_t version;  /* how often it was changed since it was made, from 1; 0 in changes */
    uint64_t lease;    /* with which it ends, or DVK_NO_LEASE */
    int deleted;       /* the change: it was deleted, or its lease ended */
    int reserved;
} dvk_kv_entry;

typedef struct dvk_kv_list {
    const dvk_kv_entry *entries;
    size_t count;
    uint64_t revision; /* as of which the keys are; or where to go on watching */
    int more;          /* there are more keys behind the last */
    int reserved;
} dvk_kv_list;

/* The value of a key, as of now in the whole cluster, into room bytes. Returns its length. info may be NULL; in it key
 * and value are NULL. -EDVSNOENT. -EDVSMSGSIZE: it does not fit; info says how long it is. */
int dvk_kv_get(const dvk_group *session, const void *key, size_t key_len, void *value, size_t room, dvk_kv_entry *info);
/* Stores a value. revision may be NULL. -EDVSNOTHELD: the lease has ended, or was not granted to this session. */
int dvk_kv_put(const dvk_group *session, const void *key, size_t key_len, const void *value, size_t value_len, uint64_t lease, uint64_t *revision);
/* Deletes a key. Returns 1, or 0 if it was not there. */
int dvk_kv_delete(const dvk_group *session, const void *key, size_t key_len);
/* Compare and swap: stores a value (NULL: deletes the key) if the key's last change was at revision expected; 0: if there
 * is no such key. revision may be NULL. -EDVSREVISION: it was at *revision. -EDVSNOTHELD, as dvk_kv_put. */
int dvk_kv_cas(const dvk_group *session, const void *key, size_t key_len, uint64_t expected, const void *value, size_t value_len, uint64_t lease, uint64_t *revision);
/* The keys from start up to and without end (NULL: to the DC's last), limit, 1024 and 64 KiB at most. Free the list. */
int dvk_kv_range(const dvk_group *session, const void *start, size_t start_len, const void *end, size_t end_len, size_t limit, dvk_kv_list **list);
/* Waits for changes of such keys of revision from or later; all of them, in order. Go on with from = (*list)->revision.
 * from 0: does not wait; the list is empty and says from where on to watch. Nothing is queued for a watcher:
 * -EDVSFORGOTTEN if the DC's last 1024 changes (or 512 KiB) do not reach back to from. -EDVSTIMEDOUT: none of such a key so
 * far; ask again from the same. In another session, after -EDVSLOST, go on from the same too. Free the list. */
int dvk_kv_watch(const dvk_group *session, const void *start, size_t start_len, const void *end, size_t end_len, uint64_t from, long timeout, dvk_kv_list **list);
/* NULL is nothing. */
void dvk_kv_free(dvk_kv_list *list);

/* A lease of 100 ms to 24 h: keys that were put with it are deleted when it ends. It outlives the session, but no other can
 * renew it, end it, or put keys with it. */
int dvk_lease_grant(const dvk_group *session, uint64_t ttl_ms, uint64_t *lease);
/* Gives it its time anew. -EDVSNOTHELD: it has ended, or is another session's. */
int dvk_lease_renew(const dvk_group *session, uint64_t lease);
/* Ends it, and deletes its keys. -EDVSNOTHELD. */
int dvk_lease_revoke(const dvk_group *session, uint64_t lease);

/* ---- locks and elections ---- */

/* Takes a lock: waits its turn; DVK_NOWAIT: only if it is free (-EDVSBUSY; also if another thread asks for it). What the
 * session has it keeps, and is given again. -EDVSINVAL: another thread waits for it. token may be NULL: the
 * fencing token, greater than that of every earlier holder. Whoever guards something with the lock refuses smaller ones: a
 * process that was stopped for long may act although its session is over. The session has the lock, not the thread.
 * -EDVSTIMEDOUT: it has not. If it cannot be known the session ends (-EDVSLOST). */
int dvk_lock(const dvk_group *session, const char *name, long timeout, uint64_t *token);
/* -EDVSNOTHELD. */
int dvk_unlock(const dvk_group *session, const char *name);
/* Becomes a candidate that says value of itself, and waits until it leads. epoch may be NULL: greater than that of every
 * earlier leader. DVK_NOWAIT: leads if nobody does. -EDVSTIMEDOUT: it is no candidate any more; who leads already
 * goes on, and says value from now on. -EDVSINVAL: another thread waits for it. */
int dvk_campaign(const dvk_group *session, const char *name, const void *value, size_t value_len, long timeout, uint64_t *epoch);
/* Ends a leadership or candidacy. -EDVSNOTHELD. */
int dvk_resign(const dvk_group *session, const char *name);
/* What the leader says of itself, into room bytes. Returns its length. epoch may be NULL. -EDVSNOENT: nobody leads.
 * -EDVSMSGSIZE: it does not fit. */
int dvk_leader(const dvk_group *session, const char *name, void *value, size_t room, uint64_t *epoch);

/* Waits until parties sessions are at the barrier; then all go on. DVK_NOWAIT: if the others are there. -EDVSBROKEN,
 * -EDVSTIMEDOUT: nobody does. -EDVSINVAL: others wait there with another number, or another thread does. */
int dvk_barrier(const dvk_group *session, const char *name, uint32_t parties, long timeout);

/* ---- groups ---- */

/* dvk_group_item.kind */
#define DVK_ITEM_MESSAGE 1
#define DVK_ITEM_VIEW 2
#define DVK_ITEM_STATE 3

/* What a member gets, numbered in the one order that all members see. */
typedef struct dvk_group_item {
    uint64_t number;
    uint64_t from;           /* message: who sent it */
    const void *data;        /* message, state */
    size_t data_len;
    const uint64_t *members; /* view: who is in the group from here on, the longest member first */
    size_t member_count;
    int kind;
    int fresh; /* view: nobody has the group's state; whoever gets this begins with none */
    int gives; /* view: others wait for the state that this member has after it: dvk_group_give */
    int reserved;
} dvk_group_item;

/* Joins a group; the session is one member, whichever thread joins. member may be NULL: its number in views, which says
 * nothing of the order in which they joined. After -EDVSNOMAJORITY it may be a member: join again. */
int dvk_group_join(const dvk_group *session, const char *name, uint64_t *member);
/* Sends to all members, the sender too. number may be NULL: that of the message. -EDVSNOTHELD: no member. -EDVSNOSPC: members
 * have not taken 4096 items yet, or those of the DC's groups 1 MiB; try again. */
int dvk_group_cast(const dvk_group *session, const char *name, const void *data, size_t data_len, uint64_t *number);
/* The next item behind the number after (0: the first); that says also that all up to it have been dealt with. A joiner
 * first gets the group's state, unless its first view is fresh. A member that takes nothing, or does not give what it is to
 * give, for 10 s while half of the room is full loses its session. -EDVSTIMEDOUT, -EDVSNOTHELD. -EDVSINVAL: there is no item
 * after yet. Free the item. */
int dvk_group_receive(const dvk_group *session, const char *name, uint64_t after, long timeout, dvk_group_item **item);
/* NULL is nothing. */
void dvk_group_free(dvk_group_item *item);
/* Gives the state that this member has after the view with this number to those who have none. -EDVSNOTHELD. */
int dvk_group_give(const dvk_group *session, const char *name, uint64_t view, const void *state, size_t state_len);
/* -EDVSNOTHELD. */
int dvk_group_leave(const dvk_group *session, const char *name);

#ifdef __cplusplus
}
#endif

#endif
