/* Dirty logging: what enabling costs, and a pass that finds 1000 dirty pages, in slots of 1 GiB and 8 GiB.
 *
 *   enable-lazy     KVM_DIRTY_LOG_INITIALLY_SET: nothing is protected until it is cleared
 *   enable-eager    without it
 *   pass-bitmap     KVM_GET_DIRTY_LOG and KVM_CLEAR_DIRTY_LOG of the whole slot: the bitmap grows with the slot
 *   pass-ring       the ring's entries and KVM_RESET_DIRTY_RINGS: by the pages that were written
 *
 * The slots are reserved, not filled: only the pages that the guest writes exist.  Prints "BENCH name ns", the median. */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "bench.h"

#define GIB       (1ull << 30)
#define PAGES     1000u
#define STRIDE    (211u * 4096) /* the pages lie in the first 824 MiB */
#define SLOT_GPA  0x1000000u
#define SAMPLES   31
#define RING_SIZE 65536u /* bytes: 4096 entries */

struct machine {
  int kvm, vm, vcpu;
  struct kvm_run *run;
  struct kvm_dirty_gfn *ring;
  uint32_t next;
  uint8_t *low, *memory;
  uint64_t size, *bitmap;
};

/* mov [ebx], ecx; add ebx, edx; dec ecx; jnz; hlt */
static const uint8_t writer[] = {0x67, 0x66, 0x89, 0x0b, 0x66, 0x01, 0xd3, 0x66, 0x49, 0x75, 0xf5, 0xf4};

static void *reserve(uint64_t size) {
  void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p != MAP_FAILED) return p;
  perror("mmap");
  exit(1);
}

static void set_slot(struct machine *m, unsigned slot, uint32_t flags, uint64_t gpa, uint64_t size, void *host) {
  struct kvm_userspace_memory_region region = {slot, flags, gpa, size, (uintptr_t)host};
  call(m->vm, KVM_SET_USER_MEMORY_REGION, &region);
}

static void log_slot(struct machine *m, bool on) {
  set_slot(m, 1, on ? KVM_MEM_LOG_DIRTY_PAGES : 0, SLOT_GPA, m->size, m->memory);
}

static struct machine start(uint64_t size, uint32_t cap, uint64_t arg) {
  struct machine m = {.size = size};
  m.kvm = uvirt_open("/dev/kvm", O_RDWR | O_CLOEXEC);
  if (m.kvm < 0) perror("/dev/kvm"), exit(1);
  m.vm = call(m.kvm, KVM_CREATE_VM, 0);
  struct kvm_enable_cap enable = {.cap = cap, .args = {arg}};
  if (cap) call(m.vm, KVM_ENABLE_CAP, &enable);
  m.low = reserve(65536);
  m.memory = reserve(size);
  m.bitmap = calloc(size / 4096 / 64, sizeof(uint64_t));
  memcpy(m.low + 0x1000, writer, sizeof(writer));
  set_slot(&m, 0, 0, 0, 65536, m.low);
  log_slot(&m, false);
  m.vcpu = call(m.vm, KVM_CREATE_VCPU, 0);
  m.run = uvirt_mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, m.vcpu, 0);
  if (cap == KVM_CAP_DIRTY_LOG_RING)
    m.ring = uvirt_mmap(NULL, RING_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, m.vcpu, KVM_DIRTY_LOG_PAGE_OFFSET * 4096);
  struct kvm_sregs sregs;
  call(m.vcpu, KVM_GET_SREGS, &sregs);
  sregs.cs.base = sregs.cs.selector = sregs.ds.base = sregs.ds.selector = 0;
  sregs.ds.limit = 0xffffffff;
  call(m.vcpu, KVM_SET_SREGS, &sregs);
  return m;
}

static void stop(struct machine *m) {
  if (m->ring) munmap(m->ring, RING_SIZE);
  munmap(m->run, 4096);
  uvirt_close(m->vcpu), uvirt_close(m->vm), uvirt_close(m->kvm);
  munmap(m->low, 65536);
  munmap(m->memory, m->size);
  free(m->bitmap);
}

static void write_pages(struct machine *m) {
  struct kvm_regs regs = {.rip = 0x1000, .rflags = 2, .rbx = SLOT_GPA, .rcx = PAGES, .rdx = STRIDE};
  call(m->vcpu, KVM_SET_REGS, &regs);
  call(m->vcpu, KVM_RUN, NULL);
  if (m->run->exit_reason == KVM_EXIT_HLT) return;
  fprintf(stderr, "exit %u\n", m->run->exit_reason);
  exit(1);
}

static void need(unsigned found) {
  if (found == PAGES) return;
  fprintf(stderr, "%u pages found, not %u\n", found, PAGES);
  exit(1);
}

/* ---- what is measured, each with its dirty pages made before ---- */

static uint64_t enable(struct machine *m) {
  log_slot(m, false);
  write_pages(m);
  uint64_t t = now();
  log_slot(m, true);
  return now() - t;
}

static unsigned count(const struct machine *m) {
  unsigned n = 0;
  for (uint64_t k = 0; k < m->size / 4096 / 64; k++) n += (unsigned)__builtin_popcountll(m->bitmap[k]);
  return n;
}

static uint64_t pass_bitmap(struct machine *m) {
  struct kvm_dirty_log get = {.slot = 1, .dirty_bitmap = m->bitmap};
  struct kvm_clear_dirty_log clear = {.slot = 1, .num_pages = (uint32_t)(m->size / 4096), .dirty_bitmap = m->bitmap};
  write_pages(m);
  uint64_t t = now();
  call(m->vm, KVM_GET_DIRTY_LOG, &get);
  call(m->vm, KVM_CLEAR_DIRTY_LOG, &clear);
  t = now() - t;
  need(count(m));
  return t;
}

static uint64_t pass_ring(struct machine *m) {
  write_pages(m);
  unsigned n = 0;
  uint64_t t = now();
  for (;; m->next++, n++) {
    struct kvm_dirty_gfn *e = &m->ring[m->next % (RING_SIZE / sizeof(*e))];
    if (!(__atomic_load_n(&e->flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_DIRTY)) break;
    __atomic_store_n(&e->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
  }
  call(m->vm, KVM_RESET_DIRTY_RINGS, NULL);
  t = now() - t;
  need(n);
  return t;
}

static int compare(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return x < y ? -1 : x > y;
}

static void measure(const char *name, uint64_t size, uint32_t cap, uint64_t arg, uint64_t (*once)(struct machine *m)) {
  uint64_t took[SAMPLES];
  struct machine m = start(size, cap, arg);
  if (once != enable) log_slot(&m, true);
  once(&m); /* warm: pages exist, the first map and the first code have been made */
  for (unsigned n = 0; n < SAMPLES; n++) took[n] = once(&m);
  qsort(took, SAMPLES, sizeof(took[0]), compare);
  printf("BENCH %s-%uG %.1f\n", name, (unsigned)(size / GIB), (double)took[SAMPLES / 2]);
  stop(&m);
}

int main(void) {
  const uint64_t manual = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, lazy = manual | KVM_DIRTY_LOG_INITIALLY_SET;
  for (uint64_t size = GIB; size <= 8 * GIB; size *= 8) {
    measure("enable-lazy", size, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, lazy, enable);
    measure("enable-eager", size, 0, 0, enable);
    measure("pass-bitmap", size, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, manual, pass_bitmap);
    measure("pass-ring", size, KVM_CAP_DIRTY_LOG_RING, RING_SIZE, pass_ring);
  }
  return 0;
}
