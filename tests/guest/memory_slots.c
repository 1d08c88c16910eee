/* Memory slots that come, go, move and change their flags while vCPUs run, and the second address space, which system management
 * mode sees. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include "inside.h"

#define AREA  0x40000000ul /* linear and guest-physical; the slots of the test lie here */
#define SIZE  0x10000ul
#define SLOT  9u
#define OTHER 0x10000u /* address space 1 */

static u8 *memory_new(void) {
  return mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void set_slot(struct guest *g, u32 slot, u64 gpa, u64 size, void *host, u32 flags) {
  struct kvm_userspace_memory_region r = {
      .slot = slot, .flags = flags, .guest_phys_addr = gpa, .memory_size = size, .userspace_addr = (u64)(uintptr_t)host};
  CHECK_EQ(guest_ioctl(g->vm, KVM_SET_USER_MEMORY_REGION, &r), 0);
}

/* ---- a vCPU that runs, and what the client does to its slots meanwhile ---- */

/* Counts in the slot until told otherwise: loads and stores, a locked store, a string, code.  Where there is no slot, reads give
 * ~0 and stores go nowhere. */
static volatile u32 stop;
typedef u32 fn(void);

static void guest_counts(void) {
  u64 *at = (u64 *)AREA;
  for (u64 n = 1; !stop; n++) {
    __atomic_store_n(&at[0], n, __ATOMIC_RELAXED);
    __asm__ volatile("lock incq %0\n incq %1" : "+m"(at[1]), "+m"(at[2])::"cc");
    u64 *to = &at[512], count = 64;
    __asm__ volatile("rep stosq" : "+D"(to), "+c"(count) : "a"(n) : "memory");
    if (n % 4096 == 0) report(1);
  }
  done();
}

struct client {
  struct guest *g;
  u8 *mem[2];
  void (*change)(struct client *c, unsigned round);
  unsigned rounds;
  atomic_bool ended;
};

static u64 now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (u64)t.tv_sec * 1000 + (u64)t.tv_nsec / 1000000;
}

static void *change_slots(void *arg) {
  struct client *c = arg;
  u64 end = now_ms() + 2000; /* whatever else the machine does */
  for (unsigned n = 0; n < c->rounds && (n < 3 || now_ms() < end); n++) {
    c->change(c, n);
    usleep(200);
  }
  stop = 1;
  atomic_store(&c->ended, true);
  return NULL;
}

/* Reads of absent memory are answered with ones. */
static unsigned run_on(struct guest *g) {
  unsigned r = guest_next(g);
  if (r == EXIT(KVM_EXIT_MMIO) && !g->run->mmio.is_write) memset(g->run->mmio.data, 0xff, 8);
  return r;
}

static void run_changing(void (*change)(struct client *c, unsigned round), unsigned rounds, u32 flags) {
  struct client c = {.g = inside_start(guest_counts), .mem = {memory_new(), memory_new()}, .change = change, .rounds = rounds};
  pthread_t thread;
  stop = 0;
  alarm(300);
  guest_map(c.g, AREA, AREA, 2 * SIZE, P_W);
  set_slot(c.g, SLOT, AREA, SIZE, c.mem[0], flags);
  pthread_create(&thread, NULL, change_slots, &c);
  unsigned r;
  do r = run_on(c.g);
  while (r == 1 || r == EXIT(KVM_EXIT_MMIO));
  CHECK_EQ(r, DONE);
  pthread_join(thread, NULL);
  CHECK(atomic_load(&c.ended));
  inside_check();
  guest_free(c.g);
  munmap(c.mem[0], SIZE);
  munmap(c.mem[1], SIZE);
}

/* Nobody stores there any more. */
static void check_still(const u8 *mem) {
  static u8 before[SIZE];
  memcpy(before, mem, SIZE);
  usleep(300);
  CHECK_EQ(memcmp(before, mem, SIZE), 0);
}

static void wait_for_change(const u8 *mem) {
  const volatile u64 *at = (const volatile u64 *)(const void *)mem;
  u64 before = at[0];
  for (unsigned n = 0; at[0] == before && n < 20000; n++) usleep(100);
  CHECK(at[0] != before);
}

/* Once KVM_SET_USER_MEMORY_REGION has returned, deleted memory is the client's alone; it may be unmapped. */
static void deletes(struct client *c, unsigned round) {
  wait_for_change(c->mem[0]);
  set_slot(c->g, SLOT, AREA, 0, NULL, 0);
  if (round & 1) {
    check_still(c->mem[0]);
  } else {
    munmap(c->mem[0], SIZE);
    c->mem[0] = memory_new();
  }
  set_slot(c->g, SLOT, AREA, SIZE, c->mem[0], 0);
}

/* The same slot leads to other memory: the old one is left alone, the new one is used. */
static void replaces(struct client *c, unsigned round) {
  u8 *old = c->mem[round & 1], *new = c->mem[~round & 1];
  wait_for_change(old);
  set_slot(c->g, SLOT, AREA, 0, NULL, 0);
  set_slot(c->g, SLOT, AREA, SIZE, new, 0);
  check_still(old);
}

static void moves(struct client *c, unsigned round) {
  if (round & 1) {
    set_slot(c->g, SLOT, AREA, SIZE, c->mem[0], 0);
    wait_for_change(c->mem[0]);
  } else {
    set_slot(c->g, SLOT, AREA + SIZE, SIZE, c->mem[0], 0);
    check_still(c->mem[0]);
  }
}

static u64 dirty_pages(struct client *c) {
  u64 bits = 0;
  struct kvm_dirty_log log = {.slot = SLOT, .dirty_bitmap = &bits};
  CHECK_EQ(guest_ioctl(c->g->vm, KVM_GET_DIRTY_LOG, &log), 0);
  return bits;
}

/* From the moment logging is on, every store is in the log. */
static void logs(struct client *c, unsigned round) {
  set_slot(c->g, SLOT, AREA, SIZE, c->mem[0], KVM_MEM_LOG_DIRTY_PAGES);
  wait_for_change(c->mem[0]);
  CHECK_EQ(dirty_pages(c) & 1, 1);
  for (unsigned n = 0; n < 10; n++) { /* and again after it was read */
    dirty_pages(c);
    wait_for_change(c->mem[0]);
    CHECK_EQ(dirty_pages(c) & ~3ull, 0);
  }
  dirty_pages(c);
  wait_for_change(c->mem[0]);
  CHECK_EQ(dirty_pages(c) & 1, 1);
  set_slot(c->g, SLOT, AREA, SIZE, c->mem[0], 0);
  wait_for_change(c->mem[0]);
}

/* A slot cannot become read-only; a new one can be: stores are exits then. */
static void protects(struct client *c, unsigned round) {
  struct kvm_userspace_memory_region r = {.slot = SLOT,
                                          .flags = KVM_MEM_READONLY,
                                          .guest_phys_addr = AREA,
                                          .memory_size = SIZE,
                                          .userspace_addr = (u64)(uintptr_t)c->mem[0]};
  CHECK_EQ(guest_ioctl(c->g->vm, KVM_SET_USER_MEMORY_REGION, &r), -1);
  set_slot(c->g, SLOT, AREA, 0, NULL, 0);
  set_slot(c->g, SLOT, AREA, SIZE, c->mem[0], KVM_MEM_READONLY);
  check_still(c->mem[0]);
  set_slot(c->g, SLOT, AREA, 0, NULL, 0);
  set_slot(c->g, SLOT, AREA, SIZE, c->mem[0], 0);
  wait_for_change(c->mem[0]);
}

/* Others come and go; this one is not disturbed. */
static void neighbours(struct client *c, unsigned round) {
  set_slot(c->g, SLOT + 1, AREA + SIZE, SIZE, c->mem[1], round & 2 ? KVM_MEM_READONLY : 0);
  set_slot(c->g, SLOT + 1, AREA + SIZE, 0, NULL, 0);
  wait_for_change(c->mem[0]);
}

#define CHANGING(name, rounds)                                                                                                   \
  static void run_##name(void) {                                                                                                 \
    run_changing(name, rounds, 0);                                                                                               \
  }
CHANGING(deletes, 100)
CHANGING(replaces, 100)
CHANGING(moves, 100)
CHANGING(logs, 20)
CHANGING(protects, 50)
CHANGING(neighbours, 200)

/* ---- code in slots that are replaced ---- */

static volatile u32 bad_calls;

/* Two functions at one address, never a mixture: one returns 1, the other 2.  Between them there is no memory: the client puts it
 * there when the vCPU says so. */
static void guest_calls(void) {
  for (u32 n = 0; n < 200; n++) {
    for (unsigned k = 0; k < 40; k++)
      if (((fn *)(uintptr_t)(AREA + 0x100))() != 1 + n % 2) bad_calls = bad_calls + 1;
    report(1);
  }
  done();
}

static void code(void) {
  u8 *mem[2] = {memory_new(), memory_new()};
  for (u8 n = 0; n < 2; n++) memcpy(mem[n] + 0x100, (const u8[]){0xb8, n + 1, 0, 0, 0, 0xc3}, 6);
  struct guest *g = inside_start(guest_calls);
  guest_map(g, AREA, AREA, SIZE, P_W);
  bad_calls = 0;
  set_slot(g, SLOT, AREA, SIZE, mem[0], 0);
  for (unsigned n = 1; n < 200; n++) {
    CHECK_EQ(guest_next(g), 1);
    set_slot(g, SLOT, AREA, 0, NULL, 0);
    set_slot(g, SLOT, AREA, SIZE, mem[n % 2], 0);
  }
  CHECK_EQ(guest_next(g), 1);
  CHECK_EQ(guest_next(g), DONE);
  CHECK_EQ(bad_calls, 0);
  guest_free(g);
  munmap(mem[0], SIZE);
  munmap(mem[1], SIZE);
}

/* ---- two address spaces ---- */

#define SMBASE  0x30000
#define SHARED  0x20000 /* other memory in system management mode */
#define SHARED_ "0x2000"

/* Real mode inside and out: a function and a word at one address, from two memories. */
GUEST_BLOB(caller, ".code16\n 1: mov $40, %cx\n 2: lcall $" SHARED_ ", $0\n loop 2b\n out %al, $0xe9\n jmp 1b\n");
GUEST_BLOB(handler, ".code16\n 1: mov $40, %cx\n 2: lcall $" SHARED_ ", $0\n loop 2b\n out %al, $0xe9\n rsm\n");
GUEST_BLOB(function, ".code16\n mov %cs:0x80, %al\n add $16, %al\n incb %cs:0x81\n lret\n");

static u8 *space(u8 value) {
  u8 *mem = memory_new();
  memcpy(mem, function_start, (size_t)(function_end - function_start));
  mem[0x80] = value;
  mem[5] = (u8)(16 * value); /* of the ADD */
  return mem;
}

static void spaces(void) {
  struct guest *g = guest_new();
  if (guest_ioctl(g->vm, KVM_CHECK_EXTENSION, (void *)KVM_CAP_MULTI_ADDRESS_SPACE) < 2) {
    guest_free(g);
    return;
  }
  u8 *outside = space(1), *inside = space(2), *third = space(3);
  set_slot(g, 0, 0, 0, NULL, 0);
  set_slot(g, 0, 0, SHARED, g->mem, 0);
  set_slot(g, 1, SHARED, SIZE, outside, 0);
  set_slot(g, 2, SHARED + SIZE, GUEST_MEM - SHARED - SIZE, g->mem + SHARED + SIZE, 0);
  set_slot(g, OTHER | 0, 0, SHARED, g->mem, 0);
  set_slot(g, OTHER | 1, SHARED, SIZE, inside, 0);
  set_slot(g, OTHER | 2, SHARED + SIZE, GUEST_MEM - SHARED - SIZE, g->mem + SHARED + SIZE, 0);
  guest_real(g, 0, GUEST_CODE);
  guest_load_blob(g, caller);
  guest_load(g, SMBASE + 0x8000, handler_start, (size_t)(handler_end - handler_start));
  for (unsigned n = 0; n < 50; n++) {
    CHECK_EQ(guest_next(g), 0x11);
    CHECK_EQ(guest_ioctl(g->vcpu, KVM_SMI, NULL), 0);
    CHECK_EQ(guest_next(g), n < 25 ? 0x22 : 0x33);
    if (n == 24) { /* that of the other space is replaced */
      set_slot(g, OTHER | 1, SHARED, 0, NULL, 0);
      set_slot(g, OTHER | 1, SHARED, SIZE, third, 0);
    }
  }
  CHECK_EQ(outside[0x81], (u8)(50 * 40));
  CHECK_EQ(inside[0x81], (u8)(25 * 40));
  CHECK_EQ(third[0x81], (u8)(25 * 40));
  guest_free(g);
  munmap(outside, SIZE), munmap(inside, SIZE), munmap(third, SIZE);
}

GUEST_MAIN({"deletes", run_deletes}, {"replaces", run_replaces}, {"moves", run_moves}, {"logs", run_logs},
           {"protects", run_protects}, {"neighbours", run_neighbours}, {"code", code}, {"spaces", spaces})
