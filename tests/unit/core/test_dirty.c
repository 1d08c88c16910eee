/* Dirty bitmaps: KVM_GET_DIRTY_LOG, manual protection, KVM_CLEAR_DIRTY_LOG and their refusals; nothing is lost under load. */
#include "fake_arch.h"

#define MB    (1u << 20)
#define PAGES 200u /* three words and a bit */

struct logged {
  struct machine m;
  u8 *host;
};

static void up(struct logged *l, unsigned vcpus, u64 manual) {
  machine_up(&l->m, vcpus);
  struct kvm_enable_cap cap = {.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, .args = {manual}};
  assert_int_equal(call(l->m.vm_fd, KVM_ENABLE_CAP, &cap), 0);
  l->host = map_pages(PAGES);
  assert_int_equal(set_slot(l->m.vm_fd, 3, KVM_MEM_LOG_DIRTY_PAGES, 4 * MB, PAGES * PAGE_SIZE, l->host), 0);
}

static void down(struct logged *l) {
  machine_down(&l->m);
  munmap(l->host, PAGES * PAGE_SIZE);
}

static void touch(struct logged *l, unsigned page) {
  assert_int_equal(vcpu_write_gpa(&l->m.vcpu[0]->core, 4 * MB + page * PAGE_SIZE + 7, "x", 1), 0);
}

static int get(struct logged *l, u32 slot, void *bitmap) {
  struct kvm_dirty_log log = {.slot = slot, .dirty_bitmap = bitmap};
  return call(l->m.vm_fd, KVM_GET_DIRTY_LOG, &log);
}

static int clear(struct logged *l, u64 first, u32 n, void *bitmap) {
  struct kvm_clear_dirty_log log = {.slot = 3, .num_pages = n, .first_page = first, .dirty_bitmap = bitmap};
  return call(l->m.vm_fd, KVM_CLEAR_DIRTY_LOG, &log);
}

static void automatic(void **state) {
  struct logged l;
  u64 map[4];
  up(&l, 1, 0);
  assert_int_equal(get(&l, 3, map), 0);
  assert_int_equal(map[0] | map[1] | map[2] | map[3], 0);
  touch(&l, 0);
  touch(&l, 65);
  touch(&l, 199);
  vcpu_write_gpa(&l.m.vcpu[0]->core, 4 * MB + 10 * PAGE_SIZE - 1, "xy", 2); /* pages 9 and 10 */
  assert_int_equal(get(&l, 3, map), 0);
  assert_true(map[0] == (1 | BIT(9) | BIT(10)) && map[1] == 2 && map[2] == 0 && map[3] == BIT(7));
  assert_true(atomic_load(&l.m.vcpu[0]->core.requests) & BIT(REQ_TLB_FLUSH)); /* protected again */
  assert_int_equal(get(&l, 3, map), 0);
  assert_int_equal(map[0] | map[1] | map[2] | map[3], 0);
  touch(&l, 5);
  assert_int_equal(get(&l, 3, (void *)8), -EFAULT);
  assert_int_equal(get(&l, 0, map), -ENOENT); /* does not log */
  assert_int_equal(get(&l, 7, map), -ENOENT);
  assert_int_equal(get(&l, 32764, map), -EINVAL);
  assert_int_equal(get(&l, 2u << 16 | 3, map), -EINVAL);
  assert_int_equal(get(&l, 1u << 16 | 3, map), -ENOENT);
  /* Logging off and on: a fresh bitmap. */
  touch(&l, 6);
  assert_int_equal(set_slot(l.m.vm_fd, 3, 0, 4 * MB, PAGES * PAGE_SIZE, l.host), 0);
  assert_int_equal(get(&l, 3, map), -ENOENT);
  assert_int_equal(set_slot(l.m.vm_fd, 3, KVM_MEM_LOG_DIRTY_PAGES, 4 * MB, PAGES * PAGE_SIZE, l.host), 0);
  assert_int_equal(get(&l, 3, map), 0);
  assert_int_equal(map[0], 0);
  down(&l);
}

static void manual(void **state) {
  struct logged l;
  u64 map[4], all[4] = {~0ull, ~0ull, ~0ull, ~0ull};
  up(&l, 1, 1);
  touch(&l, 1);
  touch(&l, 64);
  touch(&l, 198);
  for (unsigned i = 0; i < 2; i++) { /* reading changes nothing */
    assert_int_equal(get(&l, 3, map), 0);
    assert_true(map[0] == 2 && map[1] == 1 && map[3] == BIT(6));
  }
  atomic_store(&l.m.vcpu[0]->core.requests, 0);
  u64 other[1] = {BIT(5)};
  assert_int_equal(clear(&l, 0, 64, other), 0); /* set only in the caller's map: ignored */
  assert_int_equal(l.m.vcpu[0]->core.requests, 0);
  assert_int_equal(clear(&l, 0, 64, all), 0);
  assert_true(atomic_load(&l.m.vcpu[0]->core.requests) & BIT(REQ_TLB_FLUSH));
  assert_int_equal(get(&l, 3, map), 0);
  assert_true(map[0] == 0 && map[1] == 1 && map[3] == BIT(6));
  assert_int_equal(clear(&l, 192, 8, all), 0); /* exactly to the end */
  assert_int_equal(get(&l, 3, map), 0);
  assert_true(map[1] == 1 && map[3] == 0);
  assert_int_equal(clear(&l, 0, PAGES, all), 0);
  assert_int_equal(get(&l, 3, map), 0);
  assert_int_equal(map[1], 0);
  assert_int_equal(clear(&l, 1, 64, all), -EINVAL);
  assert_int_equal(clear(&l, 0, 63, all), -EINVAL);
  assert_int_equal(clear(&l, 192, 9, all), -EINVAL);
  assert_int_equal(clear(&l, 256, 0, all), -EINVAL);
  assert_int_equal(clear(&l, 64, 64, (void *)8), -EFAULT);
  struct kvm_clear_dirty_log log = {.slot = 0, .num_pages = 64, .dirty_bitmap = all};
  assert_int_equal(call(l.m.vm_fd, KVM_CLEAR_DIRTY_LOG, &log), -ENOENT);
  down(&l);
}

static void initially_set(void **state) {
  struct logged l;
  u64 map[4];
  up(&l, 0, 3);
  assert_int_equal(get(&l, 3, map), 0);
  assert_true(map[0] == ~0ull && map[1] == ~0ull && map[2] == ~0ull && map[3] == 0xff);
  struct kvm_enable_cap cap = {.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, .args = {2}};
  assert_int_equal(call(l.m.vm_fd, KVM_ENABLE_CAP, &cap), -EINVAL);
  cap.args[0] = 5;
  assert_int_equal(call(l.m.vm_fd, KVM_ENABLE_CAP, &cap), -EINVAL);
  cap.args[0] = 1;
  cap.flags = 1;
  assert_int_equal(call(l.m.vm_fd, KVM_ENABLE_CAP, &cap), -EINVAL);
  assert_int_equal(call(l.m.kvm, KVM_CHECK_EXTENSION, (void *)KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2), 3);
  down(&l);
}

/* A bitmap of several pages, in a slot that does not end with a word; and a full log that is then taken by KVM_GET_DIRTY_LOG. */
#define LARGE (5u * 32768 + 7)

static void large(void **state) {
  struct logged l;
  static u64 map[LARGE / 64 + 1], ones[LARGE / 64 + 1];
  const u64 words = LARGE / 64 + 1;
  memset(ones, 0xff, sizeof(ones));
  up(&l, 1, 3);
  void *host = mmap(NULL, (size_t)LARGE * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  assert_true(host != MAP_FAILED);
  assert_int_equal(set_slot(l.m.vm_fd, 4, KVM_MEM_LOG_DIRTY_PAGES, 1ull << 32, (u64)LARGE * PAGE_SIZE, host), 0);
  struct kvm_clear_dirty_log clear = {.slot = 4, .num_pages = LARGE, .dirty_bitmap = ones};
  assert_int_equal(get(&l, 4, map), 0);
  assert_memory_equal(map, ones, (words - 1) * sizeof(u64));
  assert_int_equal(map[words - 1], 0x7f);
  assert_int_equal(call(l.m.vm_fd, KVM_CLEAR_DIRTY_LOG, &clear), 0);
  assert_int_equal(get(&l, 4, map), 0);
  for (u64 k = 0; k < words; k++) assert_int_equal(map[k], 0);
  gpa_t last = (1ull << 32) + (u64)(LARGE - 1) * PAGE_SIZE;
  for (unsigned n = 0; n < 2; n++) assert_int_equal(vcpu_write_gpa(&l.m.vcpu[0]->core, last, "x", 1), 0);
  assert_int_equal(vcpu_write_gpa(&l.m.vcpu[0]->core, (1ull << 32) + 64 * PAGE_SIZE, "x", 1), 0);
  struct kvm_enable_cap plain = {.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2};
  assert_int_equal(call(l.m.vm_fd, KVM_ENABLE_CAP, &plain), 0);
  for (unsigned n = 0; n < 2; n++) {
    assert_int_equal(get(&l, 4, map), 0);
    for (u64 k = 0; k < words; k++) assert_int_equal(map[k], n ? 0 : k == 1 ? 1 : k == words - 1 ? BIT(6) : 0);
  }
  down(&l);
  munmap(host, (size_t)LARGE * PAGE_SIZE);
}

/* A guest as an engine is: a page becomes writable when it was marked, and stays so until REQ_TLB_FLUSH.  It increments counters
 * on 32 pages; the client copies what the log says and must end with the same memory. */
struct writer {
  bool writable[32];
  u64 flushes;
  unsigned seed;
};

static int write_step(struct fake_vcpu *c) {
  struct writer *w = c->arg;
  if (w->flushes != c->flushes) memset(w->writable, 0, sizeof(w->writable));
  w->flushes = c->flushes;
  w->seed = w->seed * 1103515245 + 12345;
  unsigned page = (w->seed >> 16) % 32;
  const struct memslot *slot = memslot_find(vm_memslots(c->core.vm, 0), (4 * MB >> PAGE_SHIFT) + page);
  if (!w->writable[page]) mark_page_dirty(&c->core, slot, slot->base_gfn + page);
  w->writable[page] = true;
  u64 *counter = (u64 *)(slot->hva + page * PAGE_SIZE);
  __atomic_store_n(counter, __atomic_load_n(counter, __ATOMIC_RELAXED) + 1, __ATOMIC_RELAXED);
  return 0;
}

static void nothing_is_lost(void **state) {
  struct logged l;
  struct writer w = {0};
  u64 map[4], copy[32] = {0};
  up(&l, 1, 0);
  machine_start(&l.m, 0, write_step, &w);
  u64 end;
  bool more = true;
  for (unsigned round = 0; more; round++) {
    more = again(round, 200, &end);
    if (more)
      machine_turns(&l.m, 0, 40);
    else
      assert_int_equal(machine_stop(&l.m, 0), -EINTR);
    assert_int_equal(get(&l, 3, map), 0);
    for (unsigned i = 0; i < 32; i++)
      if (map[0] & BIT(i)) copy[i] = __atomic_load_n((u64 *)(l.host + i * PAGE_SIZE), __ATOMIC_RELAXED);
  }
  for (unsigned i = 0; i < 32; i++) assert_int_equal(copy[i], *(u64 *)(l.host + i * PAGE_SIZE));
  down(&l);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(automatic),
      cmocka_unit_test(manual),
      cmocka_unit_test(initially_set),
      cmocka_unit_test(large),
      cmocka_unit_test(nothing_is_lost),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
