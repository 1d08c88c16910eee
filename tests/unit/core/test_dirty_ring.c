/* Dirty rings: refusals, the states of an entry, the full ring, and no page lost under load (api.rst 8.29). */
#include <sched.h>
#include "fake_arch.h"

#define MB      (1u << 20)
#define PAGES   2048u
#define ENTRIES 256u
#define LIMIT   (ENTRIES - DIRTY_RING_RESERVED)
#define BYTES   (ENTRIES * sizeof(struct kvm_dirty_gfn))
#define SLOT    3u

struct ringed {
  struct machine m;
  u8 *host;
  struct kvm_dirty_gfn *ring[8];
  u32 next[8]; /* to harvest */
};

static int enable(struct machine *m, u32 cap_number, u64 bytes) {
  struct kvm_enable_cap cap = {.cap = cap_number, .args = {bytes}};
  return call(m->vm_fd, KVM_ENABLE_CAP, &cap);
}

static void *map_ring(int fd, size_t bytes, int prot, int flags) {
  return uvirt_mmap(NULL, bytes, prot, flags, fd, KVM_DIRTY_LOG_PAGE_OFFSET * PAGE_SIZE);
}

static void up(struct ringed *r, unsigned vcpus) {
  memset(r, 0, sizeof(*r));
  machine_up(&r->m, 0);
  assert_int_equal(enable(&r->m, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, BYTES), 0);
  machine_add(&r->m, vcpus);
  for (unsigned i = 0; i < vcpus; i++) {
    r->ring[i] = map_ring(r->m.vcpu_fd[i], BYTES, PROT_READ | PROT_WRITE, MAP_SHARED);
    assert_ptr_not_equal(r->ring[i], MAP_FAILED);
  }
  r->host = map_pages(PAGES);
  assert_int_equal(set_slot(r->m.vm_fd, SLOT, KVM_MEM_LOG_DIRTY_PAGES, 4 * MB, PAGES * PAGE_SIZE, r->host), 0);
}

static void down(struct ringed *r) {
  for (unsigned i = 0; i < r->m.n; i++) munmap(r->ring[i], BYTES);
  machine_down(&r->m);
  munmap(r->host, PAGES * PAGE_SIZE);
}

static void touch(struct ringed *r, unsigned cpu, unsigned page) {
  assert_int_equal(vcpu_write_gpa(&r->m.vcpu[cpu]->core, 4 * MB + page * PAGE_SIZE + 7, "x", 1), 0);
}

/* The next entry of a ring, or NULL. */
static struct kvm_dirty_gfn *next_entry(struct ringed *r, unsigned cpu) {
  struct kvm_dirty_gfn *e = &r->ring[cpu][r->next[cpu] % ENTRIES];
  return __atomic_load_n(&e->flags, __ATOMIC_ACQUIRE) == KVM_DIRTY_GFN_F_DIRTY ? e : NULL;
}

static void harvest(struct ringed *r, unsigned cpu, struct kvm_dirty_gfn *e) {
  __atomic_store_n(&e->flags, KVM_DIRTY_GFN_F_DIRTY | KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
  r->next[cpu]++;
}

static unsigned harvest_all(struct ringed *r, unsigned cpu, void (*seen)(struct ringed *r, u64 page)) {
  unsigned n = 0;
  struct kvm_dirty_gfn *e;
  for (; (e = next_entry(r, cpu)); n++) {
    assert_int_equal(e->slot, SLOT);
    assert_true(e->offset < PAGES);
    if (seen) seen(r, e->offset);
    harvest(r, cpu, e);
  }
  return n;
}

static int reset(struct ringed *r) {
  return call(r->m.vm_fd, KVM_RESET_DIRTY_RINGS, NULL);
}

/* ---- */

static void refusals(void **state) {
  struct machine m;
  static const u32 caps[] = {KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL};
  machine_up(&m, 0);
  for (unsigned k = 0; k < ARRAY_SIZE(caps); k++) {
    assert_int_equal(call(m.vm_fd, KVM_CHECK_EXTENSION, (void *)(uintptr_t)caps[k]), 65536 * 16);
    assert_int_equal(enable(&m, caps[k], 0), -EINVAL);
    assert_int_equal(enable(&m, caps[k], 3 * 4096), -EINVAL);
    assert_int_equal(enable(&m, caps[k], 2048), -EINVAL);
    assert_int_equal(enable(&m, caps[k], 1024), -EINVAL);
    assert_int_equal(enable(&m, caps[k], 2 * MB), -E2BIG);
  }
  assert_int_equal(call(m.vm_fd, KVM_RESET_DIRTY_RINGS, NULL), -EINVAL);
  machine_add(&m, 1);
  assert_int_equal(enable(&m, KVM_CAP_DIRTY_LOG_RING, 4096), -EINVAL); /* too late */
  machine_down(&m);
}

static void other_interfaces(void **state) {
  struct ringed r;
  u64 bitmap[PAGES / 64];
  struct kvm_dirty_log get = {.slot = SLOT, .dirty_bitmap = bitmap};
  struct kvm_clear_dirty_log clear = {.slot = SLOT, .num_pages = PAGES, .dirty_bitmap = bitmap};
  up(&r, 1);
  assert_int_equal(enable(&r.m, KVM_CAP_DIRTY_LOG_RING, BYTES), -EINVAL); /* once */
  assert_int_equal(call(r.m.vm_fd, KVM_GET_DIRTY_LOG, &get), -ENXIO);
  assert_int_equal(call(r.m.vm_fd, KVM_CLEAR_DIRTY_LOG, &clear), -ENXIO);
  assert_ptr_equal(map_ring(r.m.vcpu_fd[0], BYTES, PROT_READ, MAP_PRIVATE), MAP_FAILED);
  assert_int_equal(errno, EINVAL);
  assert_ptr_equal(map_ring(r.m.vcpu_fd[0], 4096, PROT_READ | PROT_EXEC, MAP_SHARED), MAP_FAILED);
  assert_int_equal(errno, EINVAL);
  void *run = uvirt_mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, r.m.vcpu_fd[0], 0); /* not the ring */
  assert_ptr_not_equal(run, MAP_FAILED);
  munmap(run, 4096);
  down(&r);
}

static void states(void **state) {
  struct ringed r;
  up(&r, 2);
  assert_int_equal(reset(&r), 0);
  touch(&r, 0, 5);
  touch(&r, 0, 5); /* once */
  touch(&r, 1, 5); /* whoever was first */
  touch(&r, 1, 9);
  touch(&r, 0, 2047);
  struct kvm_dirty_gfn *e = next_entry(&r, 0);
  assert_non_null(e);
  assert_int_equal(e->slot, SLOT);
  assert_int_equal(e->offset, 5);
  assert_int_equal(reset(&r), 0); /* not harvested */
  assert_int_equal(r.ring[0][1].offset, 2047);
  assert_int_equal(r.ring[1][0].offset, 9);
  assert_int_equal(r.ring[1][1].flags, 0);
  r.ring[0][1].flags |= KVM_DIRTY_GFN_F_RESET;
  assert_int_equal(reset(&r), 0); /* in order */
  harvest(&r, 0, e);
  assert_int_equal(reset(&r), 2);
  assert_int_equal(r.ring[0][0].flags | r.ring[0][1].flags, 0);
  assert_true(atomic_load(&r.m.vcpu[0]->core.requests) & BIT(REQ_TLB_FLUSH)); /* protected again */
  r.next[0] = 2;
  touch(&r, 1, 5); /* now it counts anew */
  touch(&r, 0, 9); /* still in ring 1 */
  assert_null(next_entry(&r, 0));
  assert_int_equal(harvest_all(&r, 1, NULL), 2);
  assert_int_equal(reset(&r), 2);
  assert_int_equal(reset(&r), 0);
  /* What the client writes into entries is not believed. */
  touch(&r, 0, 1);
  r.ring[0][2] = (struct kvm_dirty_gfn){.flags = 3, .slot = 0xffffffff, .offset = ~0ull};
  assert_int_equal(reset(&r), 1);
  r.ring[0][3].flags = 3; /* never dirtied */
  assert_int_equal(reset(&r), 0);
  down(&r);
}

static int next_page_step(struct fake_vcpu *c) {
  const struct memslot *slot = memslot_find(vm_memslots(c->core.vm, 0), 4 * MB >> PAGE_SHIFT);
  mark_page_dirty(&c->core, slot, slot->base_gfn + c->steps % PAGES);
  return 0;
}

static void full(void **state) {
  struct ringed r;
  up(&r, 1);
  r.m.vcpu[0]->step = next_page_step;
  for (unsigned round = 1; round < 20; round++) {
    assert_int_equal(call(r.m.vcpu_fd[0], KVM_RUN, NULL), 0);
    assert_int_equal(r.m.run[0]->exit_reason, KVM_EXIT_DIRTY_RING_FULL);
    assert_int_equal(r.m.vcpu[0]->steps, round * LIMIT);
    r.m.run[0]->exit_reason = 0;
    assert_int_equal(call(r.m.vcpu_fd[0], KVM_RUN, NULL), 0); /* at once */
    assert_int_equal(r.m.run[0]->exit_reason, KVM_EXIT_DIRTY_RING_FULL);
    assert_int_equal(r.m.vcpu[0]->steps, round * LIMIT);
    assert_int_equal(harvest_all(&r, 0, NULL), LIMIT);
    assert_int_equal(reset(&r), LIMIT);
  }
  down(&r);
}

/* Guests as an engine is: a page becomes writable when it was marked, and stays so until REQ_TLB_FLUSH.  They increment counters
 * on shared pages; the client copies what the rings say, and must end with the same memory. */
struct writer {
  bool writable[PAGES];
  u64 flushes;
  unsigned seed;
};

static int write_step(struct fake_vcpu *c) {
  struct writer *w = c->arg;
  if (w->flushes != c->flushes) memset(w->writable, 0, sizeof(w->writable));
  w->flushes = c->flushes;
  w->seed = w->seed * 1103515245 + 12345;
  unsigned page = (w->seed >> 16) % PAGES;
  const struct memslot *slot = memslot_find(vm_memslots(c->core.vm, 0), (4 * MB >> PAGE_SHIFT) + page);
  if (!w->writable[page]) mark_page_dirty(&c->core, slot, slot->base_gfn + page);
  w->writable[page] = true;
  u64 *counter = (u64 *)(slot->hva + page * PAGE_SIZE) + c->core.index;
  __atomic_store_n(counter, __atomic_load_n(counter, __ATOMIC_RELAXED) + 1, __ATOMIC_RELAXED);
  return 0;
}

static u64 harvested[PAGES / 64];
static void note(struct ringed *r, u64 page) {
  harvested[page / 64] |= BIT(page % 64);
}

static void *run_until_interrupted(void *arg) {
  int fd = (int)(intptr_t)arg, r;
  do r = call(fd, KVM_RUN, NULL);
  while (r == 0); /* full ring */
  return (void *)(intptr_t)r;
}

/* Or until it cannot go on. */
static void some_turns(struct fake_vcpu *c, u64 n) {
  for (u64 end = c->steps + n; c->steps < end && !vcpu_ring_soft_full(&c->core);) sched_yield();
}

static void nothing_is_lost(void **state) {
  struct ringed r;
  static struct writer w[2];
  static u64 copy[PAGES][2];
  memset(w, 0, sizeof(w));
  memset(copy, 0, sizeof(copy));
  up(&r, 2);
  for (unsigned i = 0; i < 2; i++) {
    w[i].seed = i;
    r.m.vcpu[i]->step = write_step;
    r.m.vcpu[i]->arg = &w[i];
    pthread_create(&r.m.thread[i], NULL, run_until_interrupted, (void *)(intptr_t)r.m.vcpu_fd[i]);
  }
  u64 end;
  bool more = true;
  for (unsigned round = 0; more; round++) {
    more = again(round, 300, &end);
    if (!more)
      for (unsigned i = 0; i < 2; i++) {
        r.m.run[i]->immediate_exit = 1;
        pthread_join(r.m.thread[i], NULL);
      }
    for (unsigned i = 0; i < 2 && more; i++) some_turns(r.m.vcpu[i], 40);
    memset(harvested, 0, sizeof(harvested));
    unsigned n = harvest_all(&r, 0, note) + harvest_all(&r, 1, note);
    assert_true(reset(&r) >= (int)n);
    for (unsigned page = 0; page < PAGES; page++)
      for (unsigned i = 0; i < 2 && (harvested[page / 64] & BIT(page % 64)); i++)
        copy[page][i] = __atomic_load_n((u64 *)(r.host + page * PAGE_SIZE) + i, __ATOMIC_RELAXED);
  }
  for (unsigned page = 0; page < PAGES; page++) assert_memory_equal(copy[page], r.host + page * PAGE_SIZE, 16);
  assert_true(r.m.vcpu[0]->steps >= 400);
  down(&r);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(refusals), cmocka_unit_test(other_interfaces), cmocka_unit_test(states),
      cmocka_unit_test(full),     cmocka_unit_test(nothing_is_lost),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
