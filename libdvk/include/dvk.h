/* M3-IPC for C programs: dvk.h of libdvk_client.
 *
 * The calls follow the DVK library of Pessolani's prototype (dvk-lib, stub_dvkcall.h), and that follows MINIX 3.
 * What differs: an endpoint is 64 bits (node, index, generation), generations are checked, and functions that
 * return an endpoint return it by pointer, so that the result is always 0 or more, or a negative error (-EDVS...).
 *
 * Timeouts are milliseconds: DVK_NOWAIT, a number, or DVK_FOREVER. Signals do not end a wait.
 * A pointer argument must point to an object of its type, or is NULL where that is said; any other NULL is -EDVSFAULT.
 * A call is made as the endpoint of the calling thread (dvk_tbind), if it has one, else of the process (dvk_bind).
 * After fork the child has no endpoint and must not use its parent's: it executes a program, or exits.
 */
#ifndef DVK_H
#define DVK_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define DVK_NOWAIT 0L
#define DVK_FOREVER (-1L)

/* Errors, negative when returned. Numbers are the prototype's. */
#define EDVSINTR 4        /* the question was withdrawn */
#define EDVSAGAIN 11      /* it would block, and the timeout is DVK_NOWAIT */
#define EDVSFAULT 14      /* an address is not mapped, or NULL */
#define EDVSINVAL 22      /* a value without a meaning */
#define EDVSNOSPC 28      /* a limit is reached */
#define EDVSTIMEDOUT 61   /* the time is over */
#define EDVSMSGSIZE 73    /* a message with payload, for a receiver without room */
#define EDVSLOCKED 101    /* the destination waits in a send to the caller: a deadlock */
#define EDVSCALLDENIED 104 /* the privileges forbid it, or memory is not granted so */
#define EDVSBADREQUEST 107 /* the other side broke the protocol */
#define EDVSSRCDIED 108   /* the source died or was unbound while the caller received from it */
#define EDVSDSTDIED 109   /* the destination died or was unbound while the caller waited for it */
#define EDVSBADNODEID 301 /* no number of a node, or not this one */
#define EDVSBADDCID 302   /* another DC than this one */
#define EDVSENDPOINT 306  /* nobody is that endpoint: it was another generation, or unbound */
#define EDVSNOTBIND 310   /* the caller, or the number, is not bound; or there is no DVS here */
#define EDVSNODEBUSY 315  /* the DC needs that node */
#define EDVSNONODE 316    /* the node is down or went down; the call may have been executed */
#define EDVSDVSINIT 318   /* the DVS is there already */
#define EDVSDCRUN 323     /* the DC is there already */
#define EDVSPROCSTS 324   /* nobody waits for this reply */
#define EDVSDCNODE 326    /* the DC spans that node already */
#define EDVSOVERRUN 330   /* the notification before is still pending */
#define EDVSMIGRATE 332   /* the caller is a backup, or its endpoint went to another process; or ep is on the move */
#define EDVSSLOTUSED 337  /* the number, or the process or thread, is bound already */
#define EDVSWOKENUP 348   /* dvk_wakeup ended the wait; a call may have been executed */

typedef uint64_t dvk_ep_t;

#define DVK_NONE ((dvk_ep_t)0)
/* In dvk_receive and dvk_grant: anybody. */
#define DVK_ANY (~(dvk_ep_t)0)
/* Source of dvk_hdw_notify: the hardware of the receiver's node. */
#define DVK_HARDWARE ((dvk_ep_t)1 << 32)
/* Whoever is bound as well-known number 1..1023 on a node; up to 63 are the administrator's. */
#define DVK_EP(node, number) (((dvk_ep_t)(node) << 20) | (dvk_ep_t)(number))
#define DVK_EP_NODE(ep) ((int)(((ep) >> 20) & 0xfff))
#define DVK_EP_NUMBER(ep) ((int)((ep) & 0xfffff))

/* A message: 64 bytes. Types below 0x100 are the DVK's. */
typedef struct dvk_message {
    dvk_ep_t source;      /* who sent it: set by the DVK */
    uint64_t tag;         /* names a request; leave it as it is in the reply */
    uint16_t type;
    uint16_t status;      /* the DVK's */
    uint32_t payload_len; /* the DVK's */
    union {
        int32_t i[10];
        int64_t l[5];
        uint64_t u[5];
        char c[40];
    } m;
} dvk_message;

/* The type of a received notification; its value is in m.u[0]. */
#define DVK_NOTIFY 0x01

/* ---- being bound ---- */

/* Is there a DVS? -EDVSNOTBIND: no. (Need not be called.) */
int dvk_open(void);
/* Binds this process in its DC. number: the well-known one wanted, or 0 for any. dcid: this DC, or 0. ep may be NULL.
 * -EDVSSLOTUSED: the number is another's, or the process is bound already. -EDVSCALLDENIED: a system number without
 * the right. -EDVSNOTBIND: no DVS, no such number. -EDVSBADDCID, -EDVSNOSPC. -EDVSTIMEDOUT: after 5 s it is not known
 * whether the number's last owner has ended, as the system group has no majority or this node is cut off from it. After
 * dvk_lclbind of this process it is given that endpoint. */
int dvk_bind(int dcid, int number, dvk_ep_t *ep);
/* The same for the calling thread. It is unbound when the thread ends. */
int dvk_tbind(int dcid, int number, dvk_ep_t *ep);
/* Binds an endpoint that is no thread's, any number of them: for a program that runs others inside itself (a user-mode
 * kernel, coroutines). A thread calls as one of them after dvk_umswitch(ep), until it switches to another, or back to its
 * own by DVK_NONE. -EDVSENDPOINT: ep is none of them. It ends by dvk_unbind(0, ep) of a thread that has switched to it,
 * or with the process. Errors of dvk_umbind as dvk_bind. (The prototype's dvk_umbind is for user-mode Linux.) */
int dvk_umbind(int dcid, int number, dvk_ep_t *ep);
int dvk_umswitch(dvk_ep_t ep);
/* Binds this process (or thread) as number, 64 to 1023, of its node, and as one of the replicas of that number. Who calls
 * DVK_REPLICAS(number) gets the replica of its own node, or where there is none, one that lives. When a replica dies, calls
 * to it end (-EDVSDSTDIED, -EDVSNONODE), and the next goes to another; on one node, what it had not received goes there by
 * itself. In a message's source each is its own DVK_EP(node, number). Replicas keep their state the same by themselves, and do
 * not migrate. dvk_wait4bindep_T of DVK_REPLICAS waits for any, dvk_wait4unbind_T for the end of the last. For the
 * administrator. Errors as dvk_bind. */
int dvk_replbind(int dcid, int number, dvk_ep_t *ep);
int dvk_treplbind(int dcid, int number, dvk_ep_t *ep);
#define DVK_REPLICAS(number) ((dvk_ep_t)(number))
/* Binds another process of this node; for the administrator. Who sends to it waits until it has called dvk_bind.
 * -EDVSENDPOINT: no such process. -EDVSCALLDENIED, -EDVSSLOTUSED. */
int dvk_lclbind(int dcid, int pid, int number, dvk_ep_t *ep);
/* Is ep bound on that node? An endpoint names its node, so nothing has to be registered; name is not used and may be
 * NULL. -EDVSINVAL: ep is not of that node. -EDVSNOTBIND, -EDVSENDPOINT, -EDVSNONODE. */
int dvk_rmtbind(int dcid, const char *name, dvk_ep_t ep, int nodeid);
/* Unbinds the caller, or another endpoint of this node (for the administrator): who waits for it is told that it
 * died. -EDVSCALLDENIED, -EDVSNOTBIND, -EDVSENDPOINT. */
int dvk_unbind(int dcid, dvk_ep_t ep);
/* The caller's own endpoint. */
int dvk_getself(dvk_ep_t *ep);
/* The endpoint of a process of this node. -EDVSNOTBIND. */
int dvk_getep(int pid, dvk_ep_t *ep);
/* Waits until somebody is bound as ep, on any node; owner (may be NULL) gets who. -EDVSTIMEDOUT, -EDVSAGAIN,
 * -EDVSNONODE, -EDVSENDPOINT: that generation never comes back. (The prototype's sees its own node only.) */
int dvk_wait4bindep_T(dvk_ep_t ep, dvk_ep_t *owner, long timeout);
/* Waits until nobody is. -EDVSTIMEDOUT, -EDVSAGAIN, -EDVSNONODE. */
int dvk_wait4unbind_T(dvk_ep_t ep, long timeout);

/* ---- backups and migration (for the administrator) ----
 *
 * An endpoint with a number can go from one process to another, on any nodes of the DC, under the same address. The other
 * process stands by as a backup of it. Clients see a pause and no error: dvk_migr_start stops the endpoint's process (its
 * calls wait) and holds what comes for it, dvk_migr_commit makes a backup the endpoint, dvk_migr_rollback lets it go on.
 * What was not received goes along, notifications too; nothing is lost or delivered twice. What had been received and
 * not answered is the new process's to answer (dvk_reply with its tag): it has the old one's state, however it got that.
 * Who was the endpoint is a backup afterwards: its open calls end with -EDVSMIGRATE, its grants end.
 * (The prototype wants start and commit made on each node; here one of any node will do, as the endpoint's node tells
 * the others.) The process of the endpoint may exit between start and commit. */

/* Binds this process as a backup of the endpoint of, bound or not. It makes no calls (-EDVSMIGRATE) until it is promoted:
 * by dvk_migr_commit; with takes_over also when the endpoint's process dies, or its node goes down. Then requests that
 * had been received have ended with an error, and others go on here. The system group decides that a node is down, 2 s after
 * the majority heard it last; whoever is an endpoint on a node that may be cut off has stopped by then, and goes on if
 * nobody has taken over when it is back.
 * -EDVSCALLDENIED, -EDVSNOTBIND: of has no number, or its node is none of the DC; else as dvk_bind. */
int dvk_bkupbind(int dcid, dvk_ep_t of, int takes_over, dvk_ep_t *ep);
/* The same for the calling thread. */
int dvk_tbkupbind(int dcid, dvk_ep_t of, int takes_over, dvk_ep_t *ep);
/* Waits until this backup is promoted; ep (may be NULL) gets who it is. -EDVSTIMEDOUT, -EDVSNOTBIND. */
int dvk_wait4promote_T(dvk_ep_t *ep, long timeout);
/* Stops ep. It goes on by itself after five minutes. -EDVSMIGRATE: on the move already. -EDVSTIMEDOUT: its process has
 * not stopped within a second (it is stopped by a signal), and goes on. -EDVSDSTDIED: it died. -EDVSCALLDENIED: not
 * the administrator, or ep has no number. -EDVSNOTBIND, -EDVSENDPOINT, -EDVSNONODE. */
int dvk_migr_start(int dcid, dvk_ep_t ep);
/* backup on nodeid, or any that ep has there (DVK_NONE), is ep. -EDVSPROCSTS: not started. -EDVSNOTBIND: no such backup.
 * -EDVSMIGRATE: just being committed. -EDVSNONODE. After an error it can be committed again, or rolled back. */
int dvk_migr_commit(int dcid, dvk_ep_t ep, int nodeid, dvk_ep_t backup);
/* ep goes on where it was, as if nothing had happened. Errors as dvk_migr_commit. */
int dvk_migr_rollback(int dcid, dvk_ep_t ep);
/* The open requests that ep had received before it came to the caller: up to room of them. Returns how many there are. A
 * caller of this node may take a moment to be among them. -EDVSMIGRATE, -EDVSNOTBIND, -EDVSINVAL. */
int dvk_inherited(dvk_message *list, int room);
/* Ends the calls of ep, on any node, that are blocked: with -EDVSWOKENUP. -EDVSCALLDENIED, -EDVSNOTBIND, -EDVSENDPOINT,
 * -EDVSNONODE. */
int dvk_wakeup(int dcid, dvk_ep_t ep);

/* ---- messages ---- */

/* Sends, and waits until it is received. -EDVSDSTDIED, -EDVSENDPOINT, -EDVSNOTBIND, -EDVSNONODE, -EDVSLOCKED,
 * -EDVSCALLDENIED, -EDVSTIMEDOUT, -EDVSAGAIN. */
int dvk_send_T(dvk_ep_t ep, const dvk_message *message, long timeout);
/* Sends a request and waits for the reply, which replaces it. Errors as dvk_send_T. */
int dvk_sendrec_T(dvk_ep_t ep, dvk_message *message, long timeout);
/* Receives from ep or DVK_ANY: pending notifications first, then senders in turn; what one of them does comes in its
 * order. -EDVSSRCDIED, -EDVSNONODE: ep is gone. -EDVSNOTBIND, -EDVSENDPOINT: it was not there. -EDVSCALLDENIED,
 * -EDVSTIMEDOUT, -EDVSAGAIN. */
int dvk_receive_T(dvk_ep_t ep, dvk_message *message, long timeout);
/* Receives only requests (sendrec), of anybody. */
int dvk_rcvrqst_T(dvk_message *message, long timeout);
/* Answers the request of ep with the message's tag, or its oldest. Does not block. -EDVSPROCSTS, -EDVSCALLDENIED. */
int dvk_reply(dvk_ep_t ep, const dvk_message *message);
/* Leaves a notification with a value; does not block. To another node it is under way then, and is lost if ep is not
 * there or has one of the caller pending. -EDVSOVERRUN, -EDVSCALLDENIED, -EDVSENDPOINT, -EDVSNOTBIND. */
int dvk_ntfy_value(dvk_ep_t ep, uint64_t value);
/* The same as if source, an endpoint of this node, had; for the administrator, and only if source might. No overrun is
 * reported. -EDVSCALLDENIED, -EDVSNOTBIND, -EDVSENDPOINT. */
int dvk_src_notify(dvk_ep_t source, dvk_ep_t ep, uint64_t value);
/* A notification of DVK_HARDWARE for ep, an endpoint of this node: a driver in user space tells of an interrupt. Errors as
 * there; -EDVSNOTBIND: ep is on another node. */
int dvk_hdw_notify(int dcid, dvk_ep_t ep, uint64_t value);
/* Passes the open request that message is on to ep, as it came, with its payload: ep receives it of its source, and replies to
 * that. Does not block; the caller has no part in it any more. (It is the source's library that makes the request again,
 * by a tag of its own, so the source must have the right to send to ep; it passes a request on eight times at most, then
 * the call ends with -EDVSLOCKED. The prototype has a stub.) -EDVSPROCSTS, -EDVSCALLDENIED: no DVK_CALL_RELAY. */
int dvk_relay(dvk_ep_t ep, const dvk_message *message);

/* With a payload of up to DVK_PAYLOAD_MAX bytes. Those that receive return how long it is, and -EDVSMSGSIZE to its sender
 * if that is more than the room. A NULL pointer with 0 bytes is no payload. The buffers must not overlap. */
#define DVK_PAYLOAD_MAX 131072
int dvk_sendp_T(dvk_ep_t ep, const dvk_message *message, const void *payload, long bytes, long timeout);
long dvk_sendrecp_T(dvk_ep_t ep, dvk_message *message, const void *payload, long bytes, void *answer, long room, long timeout);
long dvk_receivep_T(dvk_ep_t ep, dvk_message *message, void *payload, long room, long timeout);
long dvk_rcvrqstp_T(dvk_message *message, void *payload, long room, long timeout);
int dvk_replyp(dvk_ep_t ep, const dvk_message *message, const void *payload, long bytes);

#define dvk_wait4bindep(ep) dvk_wait4bindep_T(ep, 0, DVK_FOREVER)
#define dvk_wait4unbind(ep) dvk_wait4unbind_T(ep, DVK_FOREVER)
#define dvk_send(ep, message) dvk_send_T(ep, message, DVK_FOREVER)
#define dvk_sendrec(ep, message) dvk_sendrec_T(ep, message, DVK_FOREVER)
#define dvk_receive(ep, message) dvk_receive_T(ep, message, DVK_FOREVER)
#define dvk_rcvrqst(message) dvk_rcvrqst_T(message, DVK_FOREVER)
#define dvk_notify(ep) dvk_ntfy_value(ep, 0)

/* ---- memory ---- */

#define DVK_READ 1
#define DVK_WRITE 2

/* Lends bytes at start to ep (DVK_ANY: to all) until dvk_revoke; access: DVK_READ, DVK_WRITE or both. They must stay
 * mapped until then: only the ends of a range are looked at before it is copied. Returns the grant's number.
 * -EDVSINVAL, -EDVSNOSPC. */
long dvk_grant(dvk_ep_t ep, const void *start, long bytes, int access);
/* Makes memory, up to 1 GiB, zero, that is lent like that, and says in *start where it is. Others of this node map it, and
 * dvk_vcopy then takes them no longer than a memcpy. With dvk_revoke it is gone, and a dvk_vcopy of it refused; but
 * a process that had mapped it and does not use this library sees (with DVK_WRITE changes) these bytes as long as it lives.
 * The caller's own range is not looked at when it copies out of memory that it has mapped: a wrong one ends the process.
 * -EDVSINVAL, -EDVSFAULT, -EDVSMSGSIZE (no bytes, or too many), -EDVSNOSPC (16 at once, 256 of a user). */
long dvk_lend(dvk_ep_t ep, long bytes, int access, void **start);
/* Ends a grant. -EDVSENDPOINT: there is none. */
int dvk_revoke(long grant);
/* Copies between any two processes of the DC, on any nodes; the caller may be either, or neither. The other sides must
 * have granted it. Returns how many bytes have been copied: fewer than bytes means that an error ended it. If none
 * were: -EDVSCALLDENIED, -EDVSFAULT, -EDVSNOTBIND or -EDVSENDPOINT (not there, or it has never granted anything),
 * -EDVSDSTDIED, -EDVSNONODE. */
long dvk_vcopy(dvk_ep_t src_ep, const void *src_addr, dvk_ep_t dst_ep, void *dst_addr, long bytes);

/* ---- information and privileges ---- */

/* Records begin with a version: DVK_INFO_VERSION. */
#define DVK_INFO_VERSION 1

/* Of the DVS: what there can be, and the versions of what a process says to dvkd and nodes to each other. */
typedef struct dvk_dvs_info {
    uint32_t version, node, node_max, endpoint_max, well_known_max, system_max;
    uint32_t copy_max, payload_max, door, link;
} dvk_dvs_info;

typedef struct dvk_dc_info {
    uint32_t version, dc, node, node_count;
    uint32_t endpoint_count, endpoint_max, well_known_max, system_max;
    uint32_t copy_max, payload_max;
} dvk_dc_info;

#define DVK_STATE_RECEIVES 1
#define DVK_STATE_RESERVED 2 /* bound by dvk_lclbind; the process has not called dvk_bind */
#define DVK_STATE_SERVER 4
#define DVK_STATE_BACKUP 8
#define DVK_STATE_REPLICA 16

typedef struct dvk_proc_info {
    uint32_t version, state;
    dvk_ep_t endpoint;
    uint32_t pid, host_pid, node, level, requesters, receivers;
} dvk_proc_info;

#define DVK_LINK_SELF 1
#define DVK_LINK_UP 2
#define DVK_LINK_LOST 3
#define DVK_LINK_DOWN 4
#define DVK_LINK_CUT 5 /* by dvk_proxy_conn or dvk_node_down */

typedef struct dvk_node_info {
    uint32_t version, node, link, reserved;
    uint64_t incarnation, epoch, calls_out, calls_in, round_trip; /* nanoseconds */
} dvk_node_info;

#define DVK_LEVEL_USER 0
#define DVK_LEVEL_SERVER 1
#define DVK_LEVEL_TASK 2
#define DVK_LEVEL_SYSTEM 3

#define DVK_CALL_SEND 1
#define DVK_CALL_RECEIVE 2
#define DVK_CALL_SENDREC 4
#define DVK_CALL_RCVRQST 8
#define DVK_CALL_REPLY 16
#define DVK_CALL_NOTIFY 32
#define DVK_CALL_VCOPY 64
#define DVK_CALL_RELAY 128
#define DVK_CALL_ALL 255

/* all, or the first count of slots: an endpoint's lower 32 bits. */
typedef struct dvk_allowed {
    uint32_t all, count, slots[12];
} dvk_allowed;

/* What an endpoint may do. A process of the administrator begins with all calls, another with DVK_CALL_SENDREC, as in
 * the prototype; both to and from everybody of the DC. */
typedef struct dvk_priv {
    uint32_t version, level, calls, reserved;
    dvk_allowed to, from;
} dvk_priv;

/* About the DVS, as this node sees it. */
int dvk_getdvsinfo(dvk_dvs_info *info);
/* A node of the DVS is there as long as its dvkd (`dvs init`, `dvs join`), and nothing can be called before; so for a
 * program it is initialised: -EDVSDVSINIT, and info (may be NULL) says what was found. -EDVSBADNODEID: this is another
 * node. dvk_dvs_end is not offered: a program of one DC cannot end the node under all of them; that is the operator's. */
int dvk_dvs_init(int nodeid, dvk_dvs_info *info);
/* Likewise a DC, which the operator configures, is there before a program can be in it: -EDVSDCRUN. -EDVSCALLDENIED: another
 * DC, which no program of this one has any say in. */
int dvk_dc_init(int dcid);
/* Unbinds every endpoint of M3-IPC programs of this node in the DC, the caller's too: who waits for them is told that they
 * died. Other nodes are not touched, and the DC's servers go on, so programs may bind themselves anew. For the
 * administrator. -EDVSCALLDENIED: not he, or another DC. (The prototype's also sends the processes SIGPIPE.) */
int dvk_dc_end(int dcid);
/* This node's part of the DC has nothing to do with nodeid any more, as if it were down: calls under way end with
 * -EDVSNONODE, others with -EDVSNOTBIND. dvk_add_node takes it in again; so does the next start of dvkd. As in the
 * prototype each node is told by itself. For the administrator. -EDVSCALLDENIED, -EDVSBADNODEID, -EDVSNOTBIND: no other
 * node of the DVS, or not of the DC. del: -EDVSNODEBUSY: this node, or that of the DC's servers. add: -EDVSDCNODE. */
int dvk_add_node(int dcid, int nodeid);
int dvk_del_node(int dcid, int nodeid);
/* About this node's part of the DC. */
int dvk_getdcinfo(int dcid, dvk_dc_info *info);
/* About an endpoint of this node. -EDVSNOTBIND, -EDVSENDPOINT. */
int dvk_getprocinfo(dvk_ep_t ep, dvk_proc_info *info);
/* About a node of the DC and the link to it (the prototype's pair of proxies). -EDVSNOTBIND. */
int dvk_getnodeinfo(int nodeid, dvk_node_info *info);
/* A pair of proxies of the prototype is the link of a dvkd to a node here, made and found again by the dvkds themselves, and
 * has the node's number. So there is no dvk_proxies_bind or _unbind; and what a proxy gets from and gives to its kernel,
 * dvk_get2rmt and dvk_put2lcl, are inside dvkd. dvk_wait4bind without an endpoint is not offered either: a process that
 * another is to bind (dvk_lclbind) is given that endpoint by its dvk_bind. */
#define dvk_getproxyinfo(pxid, info) dvk_getnodeinfo(pxid, info)
#define DVK_CONNECT_SPROXY 1
#define DVK_CONNECT_RPROXY 2
#define DVK_DISCONNECT_SPROXY 3
#define DVK_DISCONNECT_RPROXY 4
/* Makes the link of this node to nodeid stop, in both directions, or go on. What is under way waits; it goes on without
 * loss if that is within three seconds, else the nodes give each other up. For the administrator; until dvkd ends.
 * -EDVSCALLDENIED, -EDVSNOTBIND: no other node of the DC, -EDVSINVAL. */
int dvk_proxy_conn(int nodeid, int status);
/* Gives nodeid up at once: calls to it end with -EDVSNONODE; and has no link with it until dvk_node_up. Errors as there. */
int dvk_node_down(int nodeid);
int dvk_node_up(int nodeid);
/* The privileges of an endpoint of this node; to set them is the administrator's. -EDVSCALLDENIED, -EDVSNOTBIND,
 * -EDVSENDPOINT, -EDVSBADREQUEST: no such privileges. */
int dvk_getpriv(dvk_ep_t ep, dvk_priv *rights);
int dvk_setpriv(dvk_ep_t ep, const dvk_priv *rights);

/* ---- performance sensing ---- */

/* How busy a node is. Each dvkd looks once a second and tells the others; rates are means over span_ms, the time since
 * the look before; a figure that cannot be had is 0. age_ms: how old the figures are (a node that is cut off tells nothing
 * new). busy: thousandths of one processor (proc_stat(5)); load1, load5, load15: hundredths (proc_loadavg(5)); memory in
 * bytes: MemTotal and MemAvailable (proc_meminfo(5)); links: nodes to which it has a link; calls and bytes per second to
 * and from other nodes, of all DCs; round_trip: nanoseconds, the mean over its links. */
typedef struct dvk_node_load {
    uint32_t version, node, age_ms, span_ms; /* DVK_INFO_VERSION */
    uint32_t cpus, busy, load1, load5, load15, links, endpoints, reserved;
    uint64_t memory_total, memory_available, calls_out, calls_in, bytes_out, bytes_in, round_trip;
} dvk_node_load;

/* How busy the caller's DC is on a node: endpoints bound there, the processes that they are of, these processes'
 * processor time (busy) and memory (bytes; what they share counts for each); calls of other nodes per second to the
 * servers of files, of processes, of semaphores and queues, and to all other endpoints (served); calls and bytes of requests
 * per second to and from other nodes. Calls between two processes of one node pass no dvkd and are not counted. */
typedef struct dvk_dc_load {
    uint32_t version, dc, node, age_ms, span_ms, endpoints, processes, busy, served[4];
    uint64_t memory, calls_out, calls_in, bytes_out, bytes_in;
} dvk_dc_load;

/* The figures of seconds_ago (0: the last ones), or the last before that. Ten minutes are kept: each second of this node,
 * every tenth of others. -EDVSNOTBIND: the DC has no such node. -EDVSAGAIN: nothing is known of it for that time. */
int dvk_getnodeload(int nodeid, long seconds_ago, dvk_node_load *load);
int dvk_getdcload(int nodeid, long seconds_ago, dvk_dc_load *load);

#ifdef __cplusplus
}
#endif

#endif
