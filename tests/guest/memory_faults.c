/* Guest memory that is taken away, given back, protected and watched while vCPUs run.  KVM_RUN answers -EFAULT where the client's
 * own mapping refuses an access, with the state exactly before the instruction, and goes on when it is there again; the client's
 * signal handlers, masks and alternate stacks are its own. */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "inside.h"

#define AREA  0x40000000ul /* linear and guest-physical */
#define PAGES 16u
#define SIZE  (PAGES * 0x1000ul)
#define HOST  ((void *)0x60000000) /* where neither the kernel nor a sanitizer puts anything by itself */

/* ---- a guest that notices every instruction that runs twice or not at all ---- */

/* At least; and until the host has seen enough, which may take a while where other programs run. */
enum { ROUNDS = 1000, MILLISECONDS = 400, PATIENCE = 50000 };
static volatile u64 interrupts, rounds;
static volatile u32 enough;
typedef u64 fn(u64);

HANDLER take_count(struct frame *f) {
  __asm__ volatile("incq %0" : "+m"(interrupts)::"cc");
}

/* Each kind of access in a page of its own, some across two; a function at the end. */
static void guest_counts(void) {
  u64 *page[PAGES];
  for (unsigned n = 0; n < PAGES; n++) page[n] = (u64 *)(AREA + n * 0x1000);
  u64 n = 0, begin = rdtsc(), end = begin + MILLISECONDS * ticks_per_ms, last = begin + PATIENCE * ticks_per_ms;
  while (n < ROUNDS || rdtsc() < end || (!enough && rdtsc() < last)) {
    n++;
    u64 old = 1, low = n - 1, high = n - 1, *to = (u64 *)((u8 *)page[8] - 64), *from = page[12], count = 16;
    __asm__ volatile("incq %0" : "+m"(page[0][1])::"cc");
    __asm__ volatile("lock incq %0" : "+m"(page[1][2])::"cc");
    __asm__ volatile("lock xaddq %0, %1" : "+r"(old), "+m"(page[2][3])::"cc");
    EXPECT_EQ(old, n - 1);
    old = n;
    __asm__ volatile("xchgq %0, %1" : "+r"(old), "+m"(page[3][4]));
    EXPECT_EQ(old, n - 1);
    __asm__ volatile("lock cmpxchg16b %2" : "+a"(low), "+d"(high), "+m"(page[4][6]) : "b"(n), "c"(n) : "cc", "memory");
    EXPECT_EQ(low, n - 1);
    __asm__ volatile("addq $1, %0" : "+m"(*(u64 *)((u8 *)page[6] - 3))::"cc"); /* across pages 5 and 6 */
    __asm__ volatile("push %%rbp\n mov %%rsp, %%rbp\n mov %0, %%rsp\n push %1\n push %1\n incq (%%rsp)\n pop %%rax\n mov %%rbp, "
                     "%%rsp\n pop %%rbp" ::"r"((u64)&page[10][1]), /* pages 9 and 10 */
                     "r"(n)
                     : "rax", "memory", "cc");
    EXPECT_EQ(page[10][0], n);
    EXPECT_EQ(page[9][511], n + 1);
    page[12][n % 16] = n;
    __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(count)::"memory"); /* into pages 7 and 8 */
    EXPECT_EQ(count, 0);
    EXPECT_EQ(((u64 *)((u8 *)page[8] - 64))[n % 16], n);
    __asm__ volatile("movups %0, %%xmm0\n movups %%xmm0, %1" : : "m"(page[12][0]), "m"(page[13][0]) : "memory");
    EXPECT_EQ(page[13][0], page[12][0]);
    __asm__ volatile("int $0x40");
    EXPECT_EQ(interrupts, n);
    EXPECT_EQ(((fn *)(uintptr_t)((u8 *)page[15] - 2))(n), n + 1); /* across pages 14 and 15 */
    rounds = n;
  }
  EXPECT_EQ(page[0][1], n);
  EXPECT_EQ(page[1][2], n);
  EXPECT_EQ(page[2][3], n);
  EXPECT_EQ(*(u64 *)((u8 *)page[6] - 3), n);
  done();
}

static const u8 function[] = {0x48, 0x8d, 0x47, 0x01, 0xc3}; /* lea 1(%rdi), %rax; ret */

struct area {
  u8 *mem;
  int fd; /* a memfd behind it, or -1 */
  struct guest *g;
  void (*disturb)(struct area *a, unsigned round);
  atomic_bool stop;
};

static struct guest *start(struct area *a, void (*f)(void), bool from_file) {
  a->fd = from_file ? memfd_create("guest", MFD_CLOEXEC) : -1;
  if (from_file) CHECK_EQ(ftruncate(a->fd, SIZE), 0);
  a->mem = mmap(HOST, SIZE, PROT_READ | PROT_WRITE, MAP_FIXED_NOREPLACE | (from_file ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS),
                a->fd, 0);
  CHECK(a->mem != MAP_FAILED);
  struct guest *g = a->g = inside_start(f);
  guest_add_slot(g, 0, AREA, a->mem, SIZE);
  guest_map(g, AREA, AREA, SIZE, P_W);
  ticks_per_ms = (u64)guest_ioctl(g->vcpu, KVM_GET_TSC_KHZ, NULL);
  HANDLE(g, 0x40, take_count);
  memcpy(a->mem + 15 * 0x1000 - 2, function, sizeof(function));
  interrupts = rounds = enough = 0;
  alarm(300);
  return g;
}

static void finish(struct area *a) {
  inside_check();
  guest_free(a->g);
  munmap(a->mem, SIZE);
  if (a->fd >= 0) close(a->fd);
}

/* ---- the client's signals ---- */

static volatile sig_atomic_t handled, off_stack;
static u8 alternate[65536];
static u8 *nowhere;

/* For faults of the client's own at `nowhere`; any other is a failure. */
static void on_own_fault(int sig, siginfo_t *info, void *context) {
  u8 here;
  handled = handled + 1;
  if (&here < alternate || &here >= alternate + sizeof(alternate)) off_stack = off_stack + 1;
  if (info->si_addr != nowhere) abort();
  mprotect(nowhere, 0x1000, PROT_READ | PROT_WRITE);
}

static void own_fault(void) {
  *(volatile u8 *)nowhere = 1;
  mprotect(nowhere, 0x1000, PROT_NONE);
}

static sigset_t the_mask(void) {
  sigset_t s;
  pthread_sigmask(SIG_BLOCK, NULL, &s);
  return s;
}
static bool same_mask(const sigset_t *a) {
  sigset_t b = the_mask();
  for (int sig = 1; sig < 65; sig++)
    if (sigismember(a, sig) != sigismember(&b, sig)) return false;
  return true;
}

/* ---- runs with disturbances ---- */

static void *disturber(void *arg) {
  struct area *a = arg;
  for (unsigned n = 0; !atomic_load(&a->stop); n++) {
    a->disturb(a, n);
    usleep(50);
  }
  return NULL;
}

/* KVM_RUN until the end, again after each EFAULT.  Returns how many there were: so many, if they come at all. */
static unsigned run_through(struct guest *g, unsigned least) {
  unsigned faults = 0;
  enough = !least;
  sigset_t mask = the_mask();
  stack_t stack;
  for (;;) {
    int r = guest_run(g);
    if (!r) break;
    CHECK_EQ(errno, EFAULT);
    if (errno != EFAULT) break;
    CHECK(same_mask(&mask));
    CHECK(!sigaltstack(NULL, &stack) && stack.ss_sp == alternate && stack.ss_flags == 0);
    if (++faults % 8 == 0) own_fault();
    if (faults >= least) enough = 1;
    sched_yield();
  }
  CHECK_EQ(g->run->exit_reason, KVM_EXIT_IO);
  return faults;
}

/* least: so many refusals must have come for the test to mean anything. */
static void disturbed(void (*disturb)(struct area *a, unsigned round), bool from_file, unsigned least) {
  struct area a = {.disturb = disturb};
  pthread_t thread;
  sigset_t some;
  start(&a, guest_counts, from_file);
  struct sigaction act = {.sa_sigaction = on_own_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK}, old[2];
  stack_t stack = {.ss_sp = alternate, .ss_size = sizeof(alternate)}, none = {.ss_flags = SS_DISABLE};
  nowhere = mmap(NULL, 0x1000, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  sigaltstack(&stack, NULL);
  sigaction(SIGSEGV, &act, &old[0]);
  sigaction(SIGBUS, &act, &old[1]);
  sigemptyset(&some), sigaddset(&some, SIGUSR2);
  pthread_sigmask(SIG_BLOCK, &some, NULL);
  handled = off_stack = 0;
  pthread_create(&thread, NULL, disturber, &a);
  unsigned faults = run_through(a.g, least);
  atomic_store(&a.stop, true);
  pthread_join(thread, NULL);
  CHECK(rounds >= ROUNDS);
  CHECK(faults >= least);
  CHECK_EQ(handled, faults / 8);
  CHECK_EQ(off_stack, 0);
  finish(&a);
  pthread_sigmask(SIG_UNBLOCK, &some, NULL);
  sigaction(SIGSEGV, &old[0], NULL);
  sigaction(SIGBUS, &old[1], NULL);
  sigaltstack(&none, NULL);
  munmap(nowhere, 0x1000);
}

/* Some pages of the area, others each time. */
static u8 *some_pages(struct area *a, unsigned round, size_t *len) {
  unsigned first = round * 7 % PAGES, n = 1 + round * 5 % 11;
  if (first + n > PAGES) n = PAGES - first;
  *len = n * 0x1000;
  return a->mem + first * 0x1000;
}

static void change_rights(struct area *a, unsigned round, int rights) {
  size_t len;
  u8 *at = some_pages(a, round, &len);
  mprotect(at, len, rights);
  usleep(20);
  mprotect(at, len, PROT_READ | PROT_WRITE);
}
static void no_rights(struct area *a, unsigned round) {
  change_rights(a, round, PROT_NONE);
}
static void read_rights(struct area *a, unsigned round) {
  change_rights(a, round, PROT_READ);
}

/* The guest's page tables, descriptor tables and stacks, too. */
static void all_rights(struct area *a, unsigned round) {
  mprotect(a->g->mem, GUEST_MEM, PROT_NONE);
  no_rights(a, round);
  mprotect(a->g->mem, GUEST_MEM, PROT_READ | PROT_WRITE);
}

static void unmaps(struct area *a, unsigned round) {
  size_t len;
  u8 *at = some_pages(a, round, &len);
  munmap(at, len);
  usleep(20);
  /* where nothing else of this process has gone meanwhile */
  if (mmap(at, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE, a->fd, at - a->mem) != at) abort();
}

/* The same file again over itself: never absent. */
static void maps_over(struct area *a, unsigned round) {
  size_t len;
  u8 *at = some_pages(a, round, &len);
  if (mmap(at, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, a->fd, at - a->mem) != at) abort();
}

/* The page tables of the host forget what they had; shared memory keeps its contents. */
static void forgets(struct area *a, unsigned round) {
  madvise(a->mem, SIZE, round & 1 ? MADV_DONTNEED : MADV_PAGEOUT);
}

static void protect_none(void) {
  disturbed(no_rights, false, 10);
}
static void protect_read(void) {
  disturbed(read_rights, false, 10);
}
static void protect_all(void) {
  disturbed(all_rights, false, 10);
}
static void unmap(void) {
  disturbed(unmaps, true, 10);
}
static void map_over(void) {
  disturbed(maps_over, true, 0);
}
static void forget(void) {
  disturbed(forgets, true, 0);
}

/* ---- contents that go ---- */

/* What the client stored, or nothing. */
static void guest_looks(void) {
  u64 end = rdtsc() + 300 * ticks_per_ms;
  for (u64 n = 0; rdtsc() < end; n++) {
    volatile u64 *at = (u64 *)(AREA + n % 14 * 0x1000);
    u64 v = at[5];
    EXPECT(v == 0 || v == 0x5555);
    at[6] = n;
  }
  done();
}

static void stamp(struct area *a) {
  for (unsigned p = 0; p < 14; p++) *(volatile u64 *)(void *)(a->mem + p * 0x1000 + 40) = 0x5555;
}

static void looks(void (*disturb)(struct area *a, unsigned round), bool from_file) {
  struct area a = {.disturb = disturb};
  pthread_t thread;
  start(&a, guest_looks, from_file);
  stamp(&a);
  pthread_create(&thread, NULL, disturber, &a);
  while (guest_run(a.g) < 0 && errno == EFAULT) sched_yield();
  CHECK_EQ(a.g->run->exit_reason, KVM_EXIT_IO);
  atomic_store(&a.stop, true);
  pthread_join(thread, NULL);
  finish(&a);
}

static void drops(struct area *a, unsigned round) {
  madvise(a->mem, SIZE, MADV_DONTNEED);
  usleep(100);
  stamp(a);
}
static void drop(void) {
  looks(drops, false);
}

/* SIGBUS beyond the end of a file. */
static void cuts(struct area *a, unsigned round) {
  if (ftruncate(a->fd, (off_t)(round % PAGES * 0x1000))) abort();
  usleep(100);
  if (ftruncate(a->fd, SIZE)) abort();
}
static void cut(void) {
  looks(cuts, true);
}

/* The client sees which access is refused: RIP is at it, and it has not happened. */
static void state(void) {
  static const u8 code[] = {0xff, 0xc0, 0xff, 0x03, 0x43, 0xff, 0xc0}; /* inc %eax; incl (%rbx); ... */
  struct area a = {0};
  struct guest *g = start(&a, guest_looks, false);
  guest_load(g, GUEST_CODE, code, sizeof(code));
  guest_load(g, GUEST_CODE + 4, (const u8[]){0xff, 0xc0, 0xe6, GUEST_PORT}, 4); /* inc %eax; report */
  guest_set_regs(g, &(struct kvm_regs){.rip = GUEST_CODE, .rbx = AREA + 0x1000, .rsp = GUEST_STACK0, .rflags = 2});
  mprotect(a.mem + 0x1000, 0x1000, PROT_READ);
  for (unsigned n = 0; n < 3; n++) {
    CHECK_EQ(guest_run(g), -1);
    CHECK_EQ(errno, EFAULT);
    CHECK_EQ(guest_regs(g).rip, GUEST_CODE + 2);
    CHECK_EQ(guest_regs(g).rax, 1);
    CHECK_EQ(a.mem[0x1000], 0);
  }
  mprotect(a.mem + 0x1000, 0x1000, PROT_READ | PROT_WRITE);
  CHECK_EQ(guest_next(g), 2);
  CHECK_EQ(a.mem[0x1000], 1);
  finish(&a);
}

/* ---- userfaultfd ---- */

struct watch {
  struct area *a;
  int fd;
  atomic_uint missing, written;
  atomic_bool stop;
};

static bool watch_start(struct watch *w, u64 mode, u64 features) {
  w->fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
  struct uffdio_api api = {.api = UFFD_API, .features = features};
  struct uffdio_register r = {.range = {(u64)(uintptr_t)w->a->mem, SIZE}, .mode = mode};
  if (w->fd >= 0 && !ioctl(w->fd, UFFDIO_API, &api) && !ioctl(w->fd, UFFDIO_REGISTER, &r)) return true;
  printf("     no userfaultfd here\n");
  if (w->fd >= 0) close(w->fd);
  return false;
}

static void write_protect(struct watch *w, u64 at, u64 len, bool on) {
  struct uffdio_writeprotect p = {.range = {at, len}, .mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0};
  if (ioctl(w->fd, UFFDIO_WRITEPROTECT, &p)) abort();
}

/* A missing page gets its number in each word; a write-protected one is opened. */
static void *answer(void *arg) {
  struct watch *w = arg;
  u64 page[512];
  struct uffd_msg m;
  struct pollfd p = {.fd = w->fd, .events = POLLIN};
  while (!atomic_load(&w->stop)) {
    if (poll(&p, 1, 10) <= 0 || read(w->fd, &m, sizeof(m)) != sizeof(m)) continue;
    u64 at = m.arg.pagefault.address & ~0xfffull;
    if (m.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) {
      atomic_fetch_add(&w->written, 1);
      write_protect(w, at, 0x1000, false);
      continue;
    }
    for (unsigned n = 0; n < 512; n++) page[n] = (at - (u64)(uintptr_t)w->a->mem) >> 12;
    struct uffdio_copy c = {.dst = at, .src = (u64)(uintptr_t)page, .len = 0x1000};
    usleep(1000); /* long enough for a signal */
    atomic_fetch_add(&w->missing, 1);
    if (ioctl(w->fd, UFFDIO_COPY, &c) && errno != EEXIST) abort();
  }
  return NULL;
}

static void guest_reads_pages(void) {
  for (unsigned n = 0; n < PAGES; n++) EXPECT_EQ(*(volatile u64 *)(AREA + n * 0x1000 + 8 * n), n);
  for (unsigned n = 0; n < PAGES; n++) *(volatile u64 *)(AREA + n * 0x1000) = n + 100;
  report(1);
  for (unsigned n = 0; n < PAGES; n++) *(volatile u64 *)(AREA + n * 0x1000 + 16) = n;
  done();
}

static void missing_in(bool from_file) {
  struct area a = {0};
  struct watch w = {.a = &a};
  pthread_t thread;
  start(&a, guest_reads_pages, from_file);
  CHECK_EQ(madvise(a.mem, SIZE, from_file ? MADV_REMOVE : MADV_DONTNEED), 0);
  if (watch_start(&w, UFFDIO_REGISTER_MODE_MISSING, 0)) {
    pthread_create(&thread, NULL, answer, &w);
    CHECK_EQ(guest_next(a.g), 1);
    CHECK_EQ(w.missing, PAGES);
    for (unsigned n = 0; n < PAGES; n++) CHECK_EQ(*(u64 *)(void *)(a.mem + n * 0x1000), n + 100);
    CHECK_EQ(guest_next(a.g), DONE);
    atomic_store(&w.stop, true);
    pthread_join(thread, NULL);
    close(w.fd);
  }
  finish(&a);
}
static void missing(void) {
  missing_in(false);
  missing_in(true);
}

/* A signal for a thread that waits for its page: it is late, not lost, and nothing happens twice. */
static void on_signal(int sig) {}
static void missing_signal(void) {
  struct area a = {0};
  struct watch w = {.a = &a};
  pthread_t thread;
  sigaction(SIGUSR1, &(struct sigaction){.sa_handler = on_signal}, NULL);
  start(&a, guest_reads_pages, false);
  madvise(a.mem, SIZE, MADV_DONTNEED);
  if (watch_start(&w, UFFDIO_REGISTER_MODE_MISSING, 0)) {
    pthread_create(&thread, NULL, answer, &w);
    timer_t timer;
    struct itimerspec every = {.it_interval.tv_nsec = 300000, .it_value.tv_nsec = 300000};
    struct sigevent to_me = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR1, ._sigev_un._tid = gettid()};
    CHECK_EQ(timer_create(CLOCK_MONOTONIC, &to_me, &timer), 0);
    timer_settime(timer, 0, &every, NULL);
    CHECK_EQ(guest_next(a.g), 1);
    timer_delete(timer);
    CHECK(w.missing >= PAGES); /* the kernel asks again after a signal */
    CHECK_EQ(guest_next(a.g), DONE);
    atomic_store(&w.stop, true);
    pthread_join(thread, NULL);
    close(w.fd);
  }
  finish(&a);
}

/* Live snapshots: behind UFFDIO_WRITEPROTECT a page stays as it is until it is opened. */
static void protects(struct watch *w, unsigned round) {
  static u64 before[SIZE / 8];
  struct area *a = w->a;
  write_protect(w, (u64)(uintptr_t)a->mem, SIZE, true);
  memcpy(before, a->mem, SIZE);
  usleep(100);
  struct uffd_msg m;
  bool stays = !memcmp(before, a->mem, SIZE);
  if (!stays) abort();
  if (read(w->fd, &m, sizeof(m)) == sizeof(m)) {
    if (!(m.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP)) abort();
    if (atomic_fetch_add(&w->written, 1) > 3) enough = 1;
  }
  write_protect(w, (u64)(uintptr_t)a->mem, SIZE, false);
}
static void *protecter(void *arg) {
  struct watch *w = arg;
  for (unsigned n = 0; !atomic_load(&w->stop); n++) {
    protects(w, n);
    usleep(100);
  }
  return NULL;
}

static void write_protected(void) {
  struct area a = {0};
  struct watch w = {.a = &a};
  pthread_t thread;
  start(&a, guest_counts, false);
  for (unsigned n = 0; n < PAGES; n++) *(volatile u8 *)(a.mem + n * 0x1000 + 0x800) = 0; /* present */
  if (watch_start(&w, UFFDIO_REGISTER_MODE_WP, UFFD_FEATURE_PAGEFAULT_FLAG_WP)) {
    pthread_create(&thread, NULL, protecter, &w);
    CHECK_EQ(guest_next(a.g), DONE);
    atomic_store(&w.stop, true);
    pthread_join(thread, NULL);
    CHECK(w.written > 3);
    CHECK(rounds >= ROUNDS);
    close(w.fd);
  }
  finish(&a);
}

GUEST_MAIN({"state", state}, {"protect-none", protect_none}, {"protect-read", protect_read}, {"protect-all", protect_all},
           {"unmap", unmap}, {"map-over", map_over}, {"forget", forget}, {"drop", drop}, {"cut", cut}, {"missing", missing},
           {"missing-signal", missing_signal}, {"write-protected", write_protected})
