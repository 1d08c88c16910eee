/* Dirty logging that begins with every page dirty (KVM_DIRTY_LOG_INITIALLY_SET, api.rst 7.18): nothing is protected when it is
 * enabled; what is cleared is logged from then on. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include "harness.h"

#define GPA   0x10040000ul /* no page shares its place in the TLB with the code */
#define PAGES 192u
#define SLOT  1u

static u8 *ram;
static u64 bitmap[PAGES / 64];

/* Writes every page, tells, and does it again. */
GUEST_BLOB(rounds,
           "2: mov %rsi, %rdi\n mov $192, %ecx\n 1: incl 8(%rdi)\n add $4096, %rdi\n dec %ecx\n jnz 1b\n" REPORT(1) "jmp 2b\n");

static void slot(struct guest *g, u32 flags) {
  struct kvm_userspace_memory_region region = {
      .slot = SLOT, .flags = flags, .guest_phys_addr = GPA, .memory_size = PAGES * 4096, .userspace_addr = (u64)(uintptr_t)ram};
  CHECK_EQ(guest_ioctl(g->vm, KVM_SET_USER_MEMORY_REGION, &region), 0);
}

static struct guest *start(u64 mode) {
  struct guest *g = guest_new_cap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, mode);
  guest_long(g, GUEST_CODE);
  guest_load_blob(g, rounds);
  ram = mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  slot(g, 0);
  guest_map(g, GPA, GPA, PAGES * 4096, P_W);
  struct kvm_regs r = guest_regs(g);
  r.rsi = GPA;
  guest_set_regs(g, &r);
  for (unsigned n = 0; n < 3; n++) CHECK_EQ(guest_next(g), 1);
  return g;
}

static void stop(struct guest *g) {
  munmap(ram, PAGES * 4096);
  guest_free(g);
}

/* Translations that were made for one round of the guest. */
static u64 fills_of_round(struct guest *g) {
  u64 before = guest_stat(g->vcpu, "tlb_fills");
  CHECK_EQ(guest_next(g), 1);
  return guest_stat(g->vcpu, "tlb_fills") - before;
}

static unsigned dirty(struct guest *g) {
  struct kvm_dirty_log log = {.slot = SLOT, .dirty_bitmap = bitmap};
  unsigned n = 0;
  memset(bitmap, 0x5a, sizeof(bitmap));
  CHECK_EQ(guest_ioctl(g->vm, KVM_GET_DIRTY_LOG, &log), 0);
  for (unsigned k = 0; k < PAGES / 64; k++) n += (unsigned)__builtin_popcountll(bitmap[k]);
  return n;
}

static int clear(struct guest *g, u64 first, u32 pages, u64 mask) {
  u64 words[PAGES / 64] = {mask, mask, mask};
  struct kvm_clear_dirty_log log = {.slot = SLOT, .num_pages = pages, .first_page = first, .dirty_bitmap = words};
  return guest_ioctl(g->vm, KVM_CLEAR_DIRTY_LOG, &log) < 0 ? -errno : 0;
}

static void lazy(void) {
  struct guest *g = start(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET);
  CHECK_EQ(fills_of_round(g), 0); /* all translations are there */
  u64 decoded = guest_stat(g->vcpu, "blocks_decoded"), flushes = guest_stat(g->vm, "remote_tlb_flush");
  for (unsigned n = 0; n < 3; n++) { /* a log that is switched on again is full again; nobody notices either */
    slot(g, KVM_MEM_LOG_DIRTY_PAGES);
    CHECK_EQ(dirty(g), PAGES); /* of which none was written since */
    CHECK_EQ(fills_of_round(g), 0);
    if (n == 2) break;
    slot(g, 0);
    CHECK_EQ(fills_of_round(g), 0);
  }
  CHECK_EQ(guest_stat(g->vm, "remote_tlb_flush"), flushes);
  CHECK_EQ(guest_stat(g->vcpu, "blocks_decoded"), decoded);
  CHECK_EQ(dirty(g), PAGES); /* reading neither clears nor protects */
  CHECK_EQ(fills_of_round(g), 0);
  /* From the first clearing on its pages are logged. */
  CHECK_EQ(clear(g, 64, 64, 0xff), 0);
  CHECK_EQ(dirty(g), PAGES - 8);
  CHECK_EQ(bitmap[1], ~0xffull);
  CHECK(fills_of_round(g) >= 8);
  CHECK_EQ(dirty(g), PAGES);
  CHECK_EQ(fills_of_round(g), 0);
  CHECK_EQ(clear(g, 0, PAGES, ~0ull), 0);
  CHECK_EQ(dirty(g), 0);
  CHECK(fills_of_round(g) >= PAGES);
  CHECK_EQ(dirty(g), PAGES);
  stop(g);
}

/* Protected, and clean, from the beginning. */
static void eager(u64 mode) {
  struct guest *g = start(mode);
  slot(g, KVM_MEM_LOG_DIRTY_PAGES);
  CHECK_EQ(dirty(g), 0);
  CHECK(fills_of_round(g) >= PAGES);
  CHECK_EQ(dirty(g), PAGES);
  CHECK_EQ(dirty(g), mode ? PAGES : 0); /* the plain form takes what it tells */
  stop(g);
}
static void manual(void) {
  eager(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE);
}
static void plain(void) {
  eager(0);
}

static void refused(void) {
  struct guest *g = start(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET);
  CHECK_EQ(guest_ioctl(g->sys, KVM_CHECK_EXTENSION, (void *)KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2), 3);
  CHECK_EQ(guest_enable(g, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_INITIALLY_SET), -1);
  CHECK_EQ(errno, EINVAL);
  CHECK_EQ(guest_enable(g, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 4), -1);
  CHECK_EQ(clear(g, 0, 64, 1), -ENOENT); /* not logged */
  slot(g, KVM_MEM_LOG_DIRTY_PAGES);
  CHECK_EQ(clear(g, 1, 64, 1), -EINVAL);
  CHECK_EQ(clear(g, 0, 63, 1), -EINVAL);
  CHECK_EQ(clear(g, 128, 128, 1), -EINVAL);
  CHECK_EQ(clear(g, 256, 64, 1), -EINVAL);
  CHECK_EQ(clear(g, 128, 64, 1), 0);
  stop(g);
}

GUEST_MAIN({"lazy", lazy}, {"manual", manual}, {"plain", plain}, {"refused", refused})
