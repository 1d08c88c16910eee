/* KVM_SET_USER_MEMORY_REGION: refusals, look-up, changes, and that running vCPUs are waited for. */
#include "fake_arch.h"

#define MB (1u << 20)

static const struct memslot *find(struct machine *m, unsigned as, u64 gpa) {
  return memslot_find(vm_memslots(&m->vm->core, as), gpa >> PAGE_SHIFT);
}

static void refusals(void **state) {
  struct machine m;
  machine_up(&m, 0);
  u8 *p = map_pages(4);
  int vm = m.vm_fd;
  assert_int_equal(set_slot(vm, 1, 4, MB, 4096, p), -EINVAL);     /* flags */
  assert_int_equal(set_slot(vm, 1, 0, MB + 1, 4096, p), -EINVAL); /* alignment */
  assert_int_equal(set_slot(vm, 1, 0, MB, 4097, p), -EINVAL);
  assert_int_equal(set_slot(vm, 1, 0, MB, 4096, p + 1), -EINVAL);
  assert_int_equal(set_slot(vm, 1, 0, ~0xfffull, 8192, p), -EINVAL);             /* wrap */
  assert_int_equal(set_slot(vm, 1, 0, MB, 1ull << 43, p), -EINVAL);              /* 2^31 pages */
  assert_int_equal(set_slot(vm, 1, 0, MB, 4096, (void *)(1ull << 47)), -EINVAL); /* not a user address */
  assert_int_equal(set_slot(vm, 1, 0, MB, 4096, (void *)~0xfffull), -EINVAL);
  assert_int_equal(set_slot(vm, 32764, 0, MB, 4096, p), -EINVAL);             /* id */
  assert_int_equal(set_slot(vm, 2u << 16, 0, MB, 4096, p), -EINVAL);          /* address space */
  assert_int_equal(set_slot(vm, 1, 0, MB, 0, p), -EINVAL);                    /* delete what is not there */
  assert_int_equal(set_slot(vm, 0, 0, 0, m.ram_size, m.ram + 4096), -EINVAL); /* other hva */
  assert_int_equal(set_slot(vm, 0, 0, 0, 4096, m.ram), -EINVAL);              /* other size */
  assert_int_equal(set_slot(vm, 0, KVM_MEM_READONLY, 0, m.ram_size, m.ram), -EINVAL);
  assert_int_equal(set_slot(vm, 1, 0, MB - 4096, 8192, p), -EEXIST); /* overlap */
  assert_int_equal(set_slot(vm, 1, 0, 0, 4096, p), -EEXIST);
  assert_int_equal(set_slot(vm, 1, 0, 4096, 4096, p), -EEXIST);
  assert_int_equal(set_slot(vm, 1 << 16, 0, 0, 4096, p), 0);     /* another address space */
  assert_int_equal(set_slot(vm, 0, 0, 0, m.ram_size, m.ram), 0); /* no change */
  assert_int_equal(call(vm, KVM_SET_USER_MEMORY_REGION, (void *)8), -EFAULT);
  assert_int_equal(m.vm->committed, 2);
  munmap(p, 4 * PAGE_SIZE);
  machine_down(&m);
}

static void changes(void **state) {
  struct machine m;
  machine_up(&m, 0);
  u8 *p = map_pages(4);
  u64 g0 = vm_memslots(&m.vm->core, 0)->generation;
  assert_int_equal(set_slot(m.vm_fd, 5, KVM_MEM_READONLY, 4 * MB, 8192, p), 0);
  assert_int_equal(m.vm->last_change, SLOT_CREATE);
  assert_true(vm_memslots(&m.vm->core, 0)->generation > g0);
  const struct memslot *s = find(&m, 0, 4 * MB + 5000);
  assert_non_null(s);
  assert_int_equal(s->id, 5);
  assert_int_equal(memslot_hva(s, (4 * MB + 4096) >> PAGE_SHIFT), (hva_t)p + 4096);
  assert_null(find(&m, 0, 4 * MB + 8192));
  assert_null(find(&m, 0, 4 * MB - 1));
  assert_null(find(&m, 1, 4 * MB));
  assert_int_equal(set_slot(m.vm_fd, 5, KVM_MEM_READONLY, 4 * MB + 4096, 8192, p), 0); /* moves onto itself */
  assert_int_equal(m.vm->last_change, SLOT_MOVE);
  assert_null(find(&m, 0, 4 * MB));
  assert_int_equal(set_slot(m.vm_fd, 5, KVM_MEM_READONLY, MB - 4096, 8192, p), -EEXIST);
  assert_int_equal(set_slot(m.vm_fd, 5, KVM_MEM_READONLY | KVM_MEM_LOG_DIRTY_PAGES, 4 * MB + 4096, 8192, p), 0);
  assert_int_equal(m.vm->last_change, SLOT_FLAGS);
  assert_non_null(find(&m, 0, 4 * MB + 4096)->dirty_bitmap);
  m.vm->refuse_slots = 1;
  assert_int_equal(set_slot(m.vm_fd, 6, KVM_MEM_LOG_DIRTY_PAGES, 8 * MB, 4096, p), -ENOMEM);
  assert_null(find(&m, 0, 8 * MB));
  m.vm->refuse_slots = 0;
  assert_int_equal(set_slot(m.vm_fd, 5, 0, 0, 0, 0), 0);
  assert_int_equal(m.vm->last_change, SLOT_DELETE);
  assert_null(find(&m, 0, 4 * MB + 4096));
  munmap(p, 4 * PAGE_SIZE);
  machine_down(&m);
}

/* A model as a flat array of 256 page owners, changed at random together with the slots. */
static void random_changes(void **state) {
  struct machine m;
  machine_up(&m, 0);
  assert_int_equal(set_slot(m.vm_fd, 0, 0, 0, 0, 0), 0);
  u8 *host = map_pages(64 * 16);
  int owner[256];
  unsigned base[64], pages[64] = {0};
  memset(owner, 0xff, sizeof(owner));
  srand(1);
  for (unsigned round = 0; round < 250; round++) {
    unsigned id = (unsigned)rand() % 64, at = (unsigned)rand() % 250, n = 1 + (unsigned)rand() % 6;
    if (pages[id]) {
      if (rand() % 2) {
        assert_int_equal(set_slot(m.vm_fd, id, 0, 0, 0, 0), 0);
        for (unsigned i = 0; i < pages[id]; i++) owner[base[id] + i] = -1;
        pages[id] = 0;
        continue;
      }
      n = pages[id];
    }
    bool free_room = true;
    for (unsigned i = 0; i < n; i++) free_room &= owner[at + i] < 0 || owner[at + i] == (int)id;
    int r = set_slot(m.vm_fd, id, 0, at * PAGE_SIZE, n * PAGE_SIZE, host + id * 16 * PAGE_SIZE);
    assert_int_equal(r, free_room ? 0 : -EEXIST);
    if (r) continue;
    if (pages[id])
      for (unsigned i = 0; i < n; i++) owner[base[id] + i] = -1;
    for (unsigned i = 0; i < n; i++) owner[at + i] = (int)id;
    base[id] = at;
    pages[id] = n;
    for (unsigned i = 0; i < 256; i++) {
      const struct memslot *s = find(&m, 0, i * PAGE_SIZE);
      assert_int_equal(s ? s->id : -1, owner[i]);
    }
  }
  munmap(host, 64 * 16 * PAGE_SIZE);
  machine_down(&m);
}

static void every_slot(void **state) {
  struct machine m;
  machine_up(&m, 1);
  u8 *p = map_pages(1);
  int max = call(m.kvm, KVM_CHECK_EXTENSION, (void *)KVM_CAP_NR_MEMSLOTS);
  assert_int_equal(max, 32764);
  for (int i = 1; i < max; i++)
    if (set_slot(m.vm_fd, (u32)i, 0, MB + (u64)i * PAGE_SIZE, PAGE_SIZE, p)) fail();
  assert_int_equal(find(&m, 0, MB + 30000 * PAGE_SIZE)->id, 30000);
  munmap(p, PAGE_SIZE);
  machine_down(&m);
}

/* The guest reads through a host address it looked up once and looks up again only after REQ_TLB_FLUSH.  The client unmaps right
 * after the slot is gone: any late use would crash. */
struct stale {
  const u8 *host;
  u64 flushes;
  _Atomic u64 reads;
};

static int stale_step(struct fake_vcpu *c) {
  struct stale *s = c->arg;
  if (s->flushes != c->flushes || !s->reads) {
    s->flushes = c->flushes;
    const struct memslot *slot = memslot_find(vm_memslots(c->core.vm, 0), (8 * MB) >> PAGE_SHIFT);
    s->host = slot ? (const u8 *)slot->hva : NULL;
  }
  if (s->host && *(volatile const u8 *)s->host != 0x77) return -EILSEQ;
  s->reads++;
  return 0;
}

static void changes_under_running_vcpus(void **state) {
  struct machine m;
  struct stale stale[3] = {0};
  machine_up(&m, 3);
  for (unsigned i = 0; i < 3; i++) machine_start(&m, i, stale_step, &stale[i]);
  u64 end;
  for (unsigned round = 0; again(round, 25, &end); round++) {
    u8 *p = map_pages(1);
    *p = 0x77;
    assert_int_equal(set_slot(m.vm_fd, 9, 0, 8 * MB, 4096, p), 0);
    machine_turns(&m, round % 3, 1);
    assert_int_equal(set_slot(m.vm_fd, 9, 0, 8 * MB, 0, p), 0);
    munmap(p, PAGE_SIZE);
  }
  for (unsigned i = 0; i < 3; i++) {
    assert_int_equal(machine_stop(&m, i), -EINTR);
    assert_true(m.vcpu[i]->flushes > 0);
  }
  machine_down(&m);
}

static void copies(void **state) {
  struct machine m;
  char buf[3 * 4096], back[3 * 4096];
  machine_up(&m, 1);
  struct vm *vm = &m.vm->core;
  u8 *p = map_pages(4);
  for (unsigned i = 0; i < sizeof(buf); i++) buf[i] = (char)(i * 7);
  assert_int_equal(set_slot(m.vm_fd, 1, 0, MB, 4 * 4096, p), 0); /* next to slot 0 in gpa, elsewhere in memory */
  u64 epoch = vm->write_epoch;
  assert_int_equal(vcpu_write_gpa(&m.vcpu[0]->core, MB - 5000, buf, sizeof(buf)), 0);
  assert_true(vm->write_epoch > epoch);
  assert_memory_equal(m.ram + MB - 5000, buf, 5000);
  assert_memory_equal(p, buf + 5000, sizeof(buf) - 5000);
  assert_int_equal(vm_read_gpa(vm, MB - 5000, back, sizeof(back)), 0);
  assert_memory_equal(buf, back, sizeof(buf));
  assert_int_equal(vm_read_gpa(vm, MB + 4 * 4096 - 1, back, 2), -EFAULT); /* runs into a hole */
  assert_int_equal(vm_read_gpa(vm, ~0ull, back, 1), -EFAULT);
  assert_int_equal(vm_read_gpa(vm, ~0ull - 3, back, 64), -EFAULT);
  mprotect(p + 4096, 4096, PROT_NONE);
  assert_int_equal(vm_read_gpa(vm, MB + 4090, back, 16), -EFAULT); /* host fault */
  assert_int_equal(vcpu_write_gpa(&m.vcpu[0]->core, MB + 4096, back, 1), -EFAULT);
  munmap(p + 4096, 4096);
  assert_int_equal(vm_read_gpa(vm, MB + 4096, back, 1), -EFAULT);
  assert_int_equal(set_slot(m.vm_fd, 2, KVM_MEM_READONLY, 4 * MB, 4096, p), 0);
  assert_int_equal(vm_read_gpa(vm, 4 * MB, back, 16), 0);
  assert_int_equal(vcpu_write_gpa(&m.vcpu[0]->core, 4 * MB, back, 16), -EFAULT);
  munmap(p, 4 * PAGE_SIZE);
  machine_down(&m);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(refusals),
      cmocka_unit_test(changes),
      cmocka_unit_test(random_changes),
      cmocka_unit_test(every_slot),
      cmocka_unit_test(changes_under_running_vcpus),
      cmocka_unit_test(copies),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
