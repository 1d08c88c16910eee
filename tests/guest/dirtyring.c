/* The dirty ring of a vCPU that runs instructions: every page that changed is told, once; a full ring stops the vCPU before a
 * store that has no entry left, even in the middle of an instruction (api.rst 8.29, KVM_CAP_DIRTY_LOG_RING). */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "harness.h"

#define ENTRIES 256u
#define LIMIT   (ENTRIES - 64)
#define BYTES   (ENTRIES * sizeof(struct kvm_dirty_gfn))
#define GPA     0x10000000ul
#define PAGES   1024u
#define SLOT    (1u)

static struct kvm_dirty_gfn *ring;
static u32 next;
static u8 *ram;
static u8 told[PAGES], told_low[PAGES]; /* of the logged slot, of slot 0 */
static unsigned full_exits;

static struct guest *start(const u8 *begin, const u8 *end) {
  struct guest *g = guest_new_cap(KVM_CAP_DIRTY_LOG_RING, BYTES);
  guest_long(g, GUEST_CODE);
  guest_load(g, GUEST_CODE, begin, (size_t)(end - begin));
  ring = guest_map_vcpu(g, KVM_DIRTY_LOG_PAGE_OFFSET * 4096, BYTES);
  ram = mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  struct kvm_userspace_memory_region region = {.slot = SLOT,
                                               .flags = KVM_MEM_LOG_DIRTY_PAGES,
                                               .guest_phys_addr = GPA,
                                               .memory_size = PAGES * 4096,
                                               .userspace_addr = (u64)(uintptr_t)ram};
  CHECK_EQ(guest_ioctl(g->vm, KVM_SET_USER_MEMORY_REGION, &region), 0);
  guest_map(g, GPA, GPA, PAGES * 4096, P_W);
  struct kvm_regs r = guest_regs(g);
  r.rdi = r.rsi = GPA;
  r.rcx = PAGES;
  guest_set_regs(g, &r);
  next = full_exits = 0;
  memset(told, 0, sizeof(told));
  memset(told_low, 0, sizeof(told_low));
  return g;
}
#define START(name) start(name##_start, name##_end)

/* Takes all entries; how many. */
static unsigned harvest(struct guest *g) {
  unsigned n = 0;
  for (; ring[next % ENTRIES].flags == KVM_DIRTY_GFN_F_DIRTY; next++, n++) {
    struct kvm_dirty_gfn *e = &ring[next % ENTRIES];
    CHECK(e->slot <= SLOT);
    CHECK(e->offset < PAGES);
    (e->slot == SLOT ? told : told_low)[e->offset % PAGES]++;
    e->flags |= KVM_DIRTY_GFN_F_RESET;
  }
  CHECK_EQ(guest_ioctl(g->vm, KVM_RESET_DIRTY_RINGS, NULL), n);
  return n;
}

/* To the guest's report, emptying the ring whenever it is full. */
static void run(struct guest *g) {
  unsigned at;
  while ((at = guest_next(g)) == EXIT(KVM_EXIT_DIRTY_RING_FULL)) {
    full_exits++;
    unsigned n = harvest(g);
    CHECK(n >= LIMIT && n < ENTRIES);
  }
  CHECK_EQ(at, 1);
  harvest(g);
}

static void finish(struct guest *g) {
  munmap(ring, BYTES);
  munmap(ram, PAGES * 4096);
  guest_free(g);
}

GUEST_BLOB(every_page, "1: movl %ecx, 8(%rdi)\n add $4096, %rdi\n loop 1b\n" REPORT(1));

static void stores(void) {
  struct guest *g = START(every_page);
  run(g);
  CHECK_EQ(full_exits, PAGES / LIMIT);
  for (unsigned n = 0; n < PAGES; n++) {
    u32 v;
    memcpy(&v, ram + n * 4096 + 8, 4);
    CHECK_EQ(v, PAGES - n);
    CHECK_EQ(told[n], 1);
  }
  finish(g);
}

/* One instruction that writes 4 MiB, and one more that reads what it wrote. */
GUEST_BLOB(one_insn,
           "shl $9, %rcx\n mov %rcx, %rbx\n mov $0x1122334455667788, %rax\n rep stosq\n mov %rsi, %rdi\n mov %rbx, %rcx\n"
           " repe scasq\n setz %dl\n" REPORT(1));

static void repeated(void) {
  struct guest *g = START(one_insn);
  run(g);
  CHECK(full_exits >= PAGES / LIMIT);
  CHECK_EQ(guest_regs(g).rdx & 0xff, 1);
  for (unsigned n = 0; n < PAGES; n++) CHECK(told[n] == 1 || told[n] == 2); /* twice: written before and after an exit */
  finish(g);
}

/* The guest's page tables are logged too: their accessed and dirty bits take entries. */
GUEST_BLOB(pushes, "1: mov $0x10400010, %rsp\n mov %rcx, %rdx\n shl $12, %rdx\n sub %rdx, %rsp\n"
                   " push %rcx\n pop %rax\n loop 1b\n" REPORT(1));

static void tables(void) {
  struct guest *g = START(pushes);
  struct kvm_userspace_memory_region region = {
      .slot = 0, .flags = KVM_MEM_LOG_DIRTY_PAGES, .memory_size = GUEST_MEM, .userspace_addr = (u64)(uintptr_t)g->mem};
  CHECK_EQ(guest_ioctl(g->vm, KVM_SET_USER_MEMORY_REGION, &region), 0);
  run(g);
  unsigned tables = 0;
  for (unsigned n = 0; n < PAGES; n++) CHECK_EQ(told[n], 1);
  for (unsigned n = 0; n < PAGES; n++) tables += told_low[n] != 0;
  CHECK(tables >= 4 && tables < 10); /* the top, one of each level above the data, the code's */
  CHECK(told_low[g->cr3 >> 12] != 0);
  finish(g);
}

/* KVM_RUN with a full ring comes back at once, before the last exit is completed or an instruction runs. */
GUEST_BLOB(port_in, "1: movl %ecx, 8(%rdi)\n add $4096, %rdi\n loop 1b\n in $0x55, %al\n" REPORT(1));

static void stays_full(void) {
  struct guest *g = START(port_in);
  struct kvm_regs r = guest_regs(g);
  r.rcx = LIMIT;
  guest_set_regs(g, &r);
  CHECK_EQ(guest_next(g), EXIT(KVM_EXIT_DIRTY_RING_FULL));
  r = guest_regs(g);
  CHECK_EQ(guest_next(g), EXIT(KVM_EXIT_DIRTY_RING_FULL));
  CHECK_EQ(guest_regs(g).rip, r.rip);
  CHECK_EQ(guest_regs(g).rdi, r.rdi);
  CHECK_EQ(harvest(g), LIMIT);
  CHECK_EQ(guest_next(g), EXIT(KVM_EXIT_IO));
  ((u8 *)g->run)[g->run->io.data_offset] = 0x5a;
  CHECK_EQ(guest_next(g), 1);
  finish(g);
}

GUEST_MAIN({"stores", stores}, {"repeated", repeated}, {"tables", tables}, {"stays-full", stays_full})
