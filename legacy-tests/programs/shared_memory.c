/* Memory that processes of several nodes share through a mapped file, tried by what no reordering may show.

   Usage: shared_memory FILE NUMBER OF ROUNDS

   NUMBER is this process', from 0; OF is how many there are, two at least. All run the same rounds, each begun by a barrier
   in the memory itself. Every word has a page of its own. */
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, X = 1, Y, ARRIVED, COUNTER, TICKET, SERVED, PLAIN, RESULTS, PAGES = RESULTS + 16 };

static char *memory;

static int *word(int page) { return (int *)(memory + page * PAGE); }

static int load(int page) { return __atomic_load_n(word(page), __ATOMIC_SEQ_CST); }

static void store(int page, int value) { __atomic_store_n(word(page), value, __ATOMIC_SEQ_CST); }

static void die(const char *what) {
    perror(what);
    exit(2);
}

static int number, of;

/* All have come this far. */
static void barrier(void) {
    static int round;
    int wanted = of * ++round;
    __atomic_add_fetch(word(ARRIVED), 1, __ATOMIC_SEQ_CST);
    while (load(ARRIVED) < wanted)
        sched_yield();
}

static void check(int is_good, const char *what, int round) {
    if (!is_good) {
        printf("process %d, round %d: %s\n", number, round, what);
        exit(1);
    }
}

/* Each stores one word and loads the other: both loads cannot come first. */
static void store_buffering(int round) {
    if (number < 2) {
        store(number == 0 ? X : Y, round);
        *word(RESULTS + number) = load(number == 0 ? Y : X);
    }
    barrier();
    check(*word(RESULTS) == round || *word(RESULTS + 1) == round, "both loads came before both stores", round);
    barrier();
}

/* Who sees the second store sees the first. */
static void message_passing(int round) {
    if (number == 0) {
        store(X, round);
        store(Y, round);
    } else {
        int flag = load(Y), data = load(X);
        check(flag != round || data == round, "a message came before what it speaks of", round);
    }
    barrier();
}

/* Two readers agree on which of two stores came first. */
static void independent_reads(int round) {
    if (number < 2)
        store(number == 0 ? X : Y, round);
    for (int reader = 0; reader < 2; reader++)
        if (number == of - 1 - reader) {
            int *seen = word(RESULTS + 2 + reader);
            seen[0] = load(reader == 0 ? X : Y);
            seen[1] = load(reader == 0 ? Y : X);
        }
    barrier();
    int *one = word(RESULTS + 2), *other = word(RESULTS + 3);
    int disagree = one[0] == round && one[1] != round && other[0] == round && other[1] != round;
    check(!disagree, "two readers saw two stores in different orders", round);
    barrier();
}

/* Atomic additions, and plain ones under a lock of the memory itself. */
static void additions(int rounds) {
    for (int i = 0; i < rounds; i++) {
        __atomic_add_fetch(word(COUNTER), 1, __ATOMIC_SEQ_CST);
        int ticket = __atomic_fetch_add(word(TICKET), 1, __ATOMIC_SEQ_CST);
        while (load(SERVED) != ticket)
            sched_yield();
        for (int byte = 0; byte < 3; byte++)
            word(PLAIN)[byte * 300]++;
        __atomic_add_fetch(word(SERVED), 1, __ATOMIC_SEQ_CST);
    }
    barrier();
    check(load(COUNTER) == of * rounds, "atomic additions were lost", rounds);
    for (int byte = 0; byte < 3; byte++)
        check(word(PLAIN)[byte * 300] == of * rounds, "additions under a lock were lost", rounds);
}

int main(int argc, char **argv) {
    if (argc != 5)
        return 2;
    number = atoi(argv[2]);
    of = atoi(argv[3]);
    int rounds = atoi(argv[4]);
    int file = open(argv[1], O_RDWR | O_CREAT, 0666);
    if (file < 0)
        die(argv[1]);
    if (ftruncate(file, PAGES * PAGE) != 0)
        die("ftruncate");
    memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (memory == MAP_FAILED)
        die("mmap");
    close(file);
    barrier();
    for (int round = 1; round <= rounds; round++) {
        store_buffering(3 * round - 2);
        message_passing(3 * round - 1);
        independent_reads(3 * round);
    }
    additions(rounds);
    printf("shared memory: ok\n");
    return 0;
}
