/* Guest memory of every kind the client may give: what either side stores, the other sees at once, as data and as code.  Faults
 * and changes of mappings: memory_faults.c; slots that change: memory_slots.c. */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>
#include "inside.h"

#define AREA  0x40000000ul /* linear and guest-physical */
#define SIZE  0x200000ul
#define PAGES (SIZE / 0x1000)

/* ---- kinds of memory ---- */

static int memfd(void) {
  return memfd_create("guest", MFD_CLOEXEC);
}
static int huge_memfd(void) {
  return memfd_create("guest", MFD_CLOEXEC | MFD_HUGETLB);
}
static int file(void) {
  return open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
}

static const struct kind {
  const char *name;
  int (*open)(void);
  int flags;
} kinds[] = {
    {"private anonymous", NULL, MAP_PRIVATE | MAP_ANONYMOUS},
    {"shared anonymous", NULL, MAP_SHARED | MAP_ANONYMOUS},
    {"memfd", memfd, MAP_SHARED},
    {"private memfd", memfd, MAP_PRIVATE},
    {"file", file, MAP_SHARED},
    {"private file", file, MAP_PRIVATE},
    {"anonymous huge pages", NULL, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB},
    {"huge memfd", huge_memfd, MAP_SHARED},
};

struct area {
  const struct kind *kind;
  int fd;
  u8 *mem;
};

/* false: the machine has none of this kind. */
static bool area_new(struct area *a, const struct kind *kind) {
  *a = (struct area){.kind = kind, .fd = kind->open ? kind->open() : -1};
  if (kind->open && (a->fd < 0 || ftruncate(a->fd, SIZE))) return false;
  a->mem = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, kind->flags, a->fd, 0);
  if (a->mem != MAP_FAILED) return true;
  if (a->fd >= 0) close(a->fd);
  return false;
}

static void area_free(struct area *a) {
  munmap(a->mem, SIZE);
  if (a->fd >= 0) close(a->fd);
}

static struct guest *start(void (*f)(void), void *mem) {
  struct guest *g = inside_start(f);
  guest_add_slot(g, 0, AREA, mem, SIZE);
  guest_map(g, AREA, AREA, SIZE, P_W);
  ticks_per_ms = (u64)guest_ioctl(g->vcpu, KVM_GET_TSC_KHZ, NULL);
  return g;
}

/* A test of every kind. */
static void each(void (*test)(struct area *a)) {
  for (unsigned n = 0; n < sizeof(kinds) / sizeof(kinds[0]); n++) {
    struct area a;
    if (!area_new(&a, &kinds[n])) {
      printf("     no %s here\n", kinds[n].name);
      continue;
    }
    test(&a);
    area_free(&a);
  }
}

/* ---- the client's ways to store ---- */

static bool by_store(struct area *a, u64 at, const void *from, size_t len) {
  for (size_t n = 0; n < len; n++) ((volatile u8 *)a->mem)[at + n] = ((const u8 *)from)[n];
  return true;
}
static bool by_read(struct area *a, u64 at, const void *from, size_t len) {
  int p[2];
  bool good = !pipe(p) && write(p[1], from, len) == (ssize_t)len && read(p[0], a->mem + at, len) == (ssize_t)len;
  close(p[0]), close(p[1]);
  return good;
}
static bool by_process(struct area *a, u64 at, const void *from, size_t len) {
  struct iovec here = {(void *)(uintptr_t)from, len}, there = {a->mem + at, len};
  return process_vm_writev(getpid(), &here, 1, &there, 1, 0) == (ssize_t)len;
}
/* Where the memory is the file's. */
static bool by_file(struct area *a, u64 at, const void *from, size_t len) {
  if (a->fd < 0 || !(a->kind->flags & MAP_SHARED) || a->kind->open == huge_memfd) return by_store(a, at, from, len);
  return pwrite(a->fd, from, len, (off_t)at) == (ssize_t)len;
}
static bool (*const ways[])(struct area *a, u64 at, const void *from, size_t len) = {by_store, by_read, by_process, by_file};
enum { WAYS = 4 };

/* ---- data while the guest is stopped ---- */

static volatile u64 *word(u64 page, unsigned n) {
  return (u64 *)(uintptr_t)(AREA + page * 0x1000) + n;
}
static u64 stamp(u64 page, unsigned round) {
  return (page + 1) * 0x0101010101010101 + round;
}

static void guest_stamps(void) {
  for (unsigned round = 0; round < 2 * WAYS; round++) {
    for (u64 p = 0; p < PAGES; p++) {
      EXPECT_EQ(*word(p, 0), stamp(p, round));
      *word(p, 511) = ~stamp(p, round);
    }
    report(1);
  }
  done();
}

/* A private mapping's stores stay out of the file. */
static void check_file(struct area *a, unsigned round) {
  u64 v, shared = a->kind->flags & MAP_SHARED ? ~0ull : 0;
  if (a->fd < 0) return;
  for (u64 p = 0; p < PAGES; p++) {
    CHECK_EQ(pread(a->fd, &v, 8, (off_t)(p * 0x1000 + 511 * 8)), 8);
    CHECK_EQ(v, shared & ~stamp(p, round));
  }
}

static void stamps_of(struct area *a) {
  struct guest *g = start(guest_stamps, a->mem);
  for (unsigned round = 0; round < 2 * WAYS; round++) {
    for (u64 p = 0; p < PAGES; p++) {
      u64 v = stamp(p, round);
      CHECK(ways[round % WAYS](a, p * 0x1000, &v, 8));
    }
    CHECK_EQ(guest_next(g), 1);
    for (u64 p = 0; p < PAGES; p++) CHECK_EQ(((u64 *)(void *)a->mem)[p * 512 + 511], ~stamp(p, round));
    check_file(a, round);
  }
  inside_run(g);
}
static void stamps(void) {
  each(stamps_of);
}

/* ---- data while the guest runs ---- */

enum { ROUNDS = 40 };
static volatile u64 saw;

/* Each new value is answered with a store of it. */
static void guest_answers(void) {
  u64 end = rdtsc() + 20000 * ticks_per_ms;
  for (u64 n = 1; n <= ROUNDS && rdtsc() < end; n++) {
    while (*word(3, 0) != n && rdtsc() < end) relax();
    *word(5, 0) = n;
  }
  saw = *word(3, 0);
  done();
}

static void *ask(void *arg) {
  struct area *a = arg;
  const volatile u64 *answer = (u64 *)(void *)(a->mem + 5 * 0x1000);
  for (u64 n = 1; n <= ROUNDS; n++) {
    if (!ways[n % WAYS](a, 3 * 0x1000, &n, 8)) return NULL;
    for (unsigned k = 0; *answer != n && k < 10000; k++) k < 1000 ? (void)sched_yield() : (void)usleep(1000);
  }
  return arg;
}

static void answers_of(struct area *a) {
  pthread_t client;
  void *good;
  saw = 0;
  struct guest *g = start(guest_answers, a->mem);
  pthread_create(&client, NULL, ask, a);
  CHECK_EQ(guest_next(g), DONE);
  pthread_join(client, &good);
  CHECK(good);
  CHECK_EQ(saw, ROUNDS);
  guest_free(g);
}
static void answers(void) {
  each(answers_of);
}

/* ---- code ---- */

typedef u32 fn(void);
enum { CALLS = 50 }; /* often enough to be translated */

static void guest_calls(void) {
  for (u32 n = 1; n <= 4 * WAYS; n++) {
    for (unsigned k = 0; k < CALLS; k++) EXPECT_EQ(((fn *)(uintptr_t)(AREA + 0x10ffd))(), n);
    report(1);
  }
  done();
}

static void calls_of(struct area *a) {
  struct guest *g = start(guest_calls, a->mem);
  for (u32 n = 1; n <= 4 * WAYS; n++) {
    u8 code[6] = {0xb8, (u8)n, 0, 0, 0, 0xc3}; /* mov $n, %eax; ret, across two pages */
    CHECK(ways[n % WAYS](a, 0x10ffd, code, sizeof(code)));
    CHECK_EQ(guest_next(g), 1);
  }
  inside_run(g);
}
static void calls(void) {
  each(calls_of);
}

/* ---- one memory at two guest addresses ---- */

#define OTHER 0x48000000ul

/* Data at once; code after a jump and, to be sure, an instruction that serialises.  One file at two addresses of the client: the
 * library cannot know that these are the same; code stored through the other one counts after the next exit, as the client's
 * stores. */
static volatile bool with_exit;
static void guest_aliases(void) {
  for (u32 n = 1; n <= 100; n++) {
    *word(7, 0) = n;
    EXPECT_EQ(*(volatile u64 *)(OTHER + 0x7000), n);
    volatile u8 *code = (u8 *)(n & 1 ? AREA : OTHER) + 0x9000;
    code[0] = 0xb8, *(volatile u32 *)(code + 1) = n, code[5] = 0xc3;
    u32 a = 0, b, c = 0, d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d)::"memory");
    if (with_exit) report(1);
    for (unsigned k = 0; k < CALLS; k++) EXPECT_EQ(((fn *)(uintptr_t)(AREA + 0x9000))(), n);
  }
  done();
}

static void aliases_at(u8 *mem, u8 *other) {
  with_exit = mem != other;
  struct guest *g = start(guest_aliases, mem);
  guest_add_slot(g, 0, OTHER, other, SIZE);
  guest_map(g, OTHER, OTHER, SIZE, P_W);
  for (unsigned n = 0; n < 100 && with_exit; n++) CHECK_EQ(guest_next(g), 1);
  inside_run(g);
}

static void same_address(void) {
  struct area a;
  CHECK(area_new(&a, &kinds[0]));
  aliases_at(a.mem, a.mem);
  area_free(&a);
}
static void same_file(void) {
  struct area a;
  CHECK(area_new(&a, &kinds[2]));
  u8 *other = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, a.fd, 0);
  aliases_at(a.mem, other);
  munmap(other, SIZE);
  area_free(&a);
}

/* ---- read-only slots ---- */

/* Reads and code come from memory; a store is the client's to see, once, and changes nothing. */
static void guest_read_only(void) {
  for (u64 n = 0; n < 100; n++) {
    EXPECT_EQ(*word(n % 8, 0), 0x1111);
    *word(n % 8, 0) = n;
    EXPECT_EQ(((fn *)(uintptr_t)(AREA + 0x9000))(), 42);
  }
  *(volatile u8 *)(AREA + 0x1003) = 0xab;
  *(volatile u16 *)(AREA + 0x1ff6) = 0xcdef;
  __asm__ volatile("lock addl $5, %0" : "+m"(*(volatile u32 *)(AREA + 0x2000)));
  EXPECT_EQ(*(volatile u32 *)(AREA + 0x2000), 0x1111);
  done();
}

static void expect_write(struct guest *g, u64 at, unsigned len, u64 v) {
  u64 data = 0;
  CHECK_EQ(guest_run(g), 0);
  CHECK_EQ(g->run->exit_reason, KVM_EXIT_MMIO);
  CHECK_EQ(g->run->mmio.is_write, 1);
  CHECK_EQ(g->run->mmio.phys_addr, at);
  CHECK_EQ(g->run->mmio.len, len);
  memcpy(&data, g->run->mmio.data, len <= 8 ? len : 8);
  CHECK_EQ(data, v);
}

/* rights: of the client's mapping, which need not be writable either. */
static void read_only_with(int rights) {
  static const u8 code[] = {0xb8, 42, 0, 0, 0, 0xc3};
  struct area a;
  CHECK(area_new(&a, &kinds[4]));
  memcpy(a.mem + 0x9000, code, sizeof(code));
  for (u64 p = 0; p < 8; p++) *(u64 *)(void *)(a.mem + p * 0x1000) = 0x1111;
  CHECK_EQ(mprotect(a.mem, SIZE, rights), 0);
  struct guest *g = inside_start(guest_read_only);
  struct kvm_userspace_memory_region r = {.slot = g->slots++,
                                          .flags = KVM_MEM_READONLY,
                                          .guest_phys_addr = AREA,
                                          .memory_size = SIZE,
                                          .userspace_addr = (u64)(uintptr_t)a.mem};
  CHECK_EQ(guest_ioctl(g->vm, KVM_SET_USER_MEMORY_REGION, &r), 0);
  guest_map(g, AREA, AREA, SIZE, P_W);
  for (u64 n = 0; n < 100; n++) expect_write(g, AREA + n % 8 * 0x1000, 8, n);
  expect_write(g, AREA + 0x1003, 1, 0xab);
  expect_write(g, AREA + 0x1ff6, 2, 0xcdef);
  expect_write(g, AREA + 0x2000, 4, 0x1116);
  inside_run(g);
  area_free(&a);
}
static void read_only(void) {
  read_only_with(PROT_READ | PROT_WRITE);
  read_only_with(PROT_READ);
}

GUEST_MAIN({"stamps", stamps}, {"answers", answers}, {"calls", calls}, {"same-address", same_address}, {"same-file", same_file},
           {"read-only", read_only})
