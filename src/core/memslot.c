/* Memory slots: KVM_SET_USER_MEMORY_REGION, publication, lookup. */
#include "core/memslot.h"
#include <errno.h>
#include <stdlib.h>
#include <urcu-bp.h>
#include "core/core_priv.h"
#include "core/dirty.h"

#define SLOT_IDS   32764u         /* KVM_USER_MEM_SLOTS on x86 */
#define MAX_NPAGES ((1ull << 31) - 1)

static struct memslots *slots_alloc(unsigned n) {
  struct memslots *s = calloc(1, sizeof(*s) + n * sizeof(s->slot[0]));
  if (s) s->n = n;
  return s;
}

int memslots_init(struct vm *vm) {
  for (unsigned as = 0; as < vm->arch->address_spaces; as++) {
    vm->slots[as] = slots_alloc(0);
    if (!vm->slots[as]) return -ENOMEM;
    vm->slots[as]->generation = as;
  }
  return 0;
}

void memslots_destroy(struct vm *vm) {
  for (unsigned as = 0; as < 2; as++) {
    struct memslots *s = vm->slots[as];
    for (unsigned k = 0; s && k < s->n; k++) free(s->slot[k].dirty_bitmap);
    free(s);
    vm->slots[as] = NULL;
  }
}

const struct memslot *memslot_find(const struct memslots *s, gfn_t gfn) {
  unsigned lo = 0, hi = s->n;
  while (lo < hi) {
    unsigned mid = (lo + hi) / 2;
    const struct memslot *m = &s->slot[mid];
    if (gfn < m->base_gfn) hi = mid;
    else if (gfn >= m->base_gfn + m->npages) lo = mid + 1;
    else return m;
  }
  return NULL;
}

static int find_id(const struct memslots *s, u16 id) {
  for (unsigned k = 0; k < s->n; k++)
    if (s->slot[k].id == id) return (int)k;
  return -1;
}

static bool overlaps(const struct memslots *s, const struct memslot *m) {
  for (unsigned k = 0; k < s->n; k++) {
    const struct memslot *o = &s->slot[k];
    if (o->id != m->id && m->base_gfn < o->base_gfn + o->npages && o->base_gfn < m->base_gfn + m->npages) return true;
  }
  return false;
}

/* The old array without slot `gone` (-1: none) and with `add` (NULL: none), sorted. */
static struct memslots *rebuilt(const struct memslots *old, int gone, const struct memslot *add) {
  struct memslots *s = slots_alloc(old->n - (gone >= 0) + (add != NULL));
  unsigned to = 0;
  if (!s) return NULL;
  s->generation = old->generation + 2; /* the low bit tells the address spaces apart */
  for (unsigned k = 0; k < old->n; k++) {
    if ((int)k == gone) continue;
    if (add && add->base_gfn < old->slot[k].base_gfn) {
      s->slot[to++] = *add;
      add = NULL;
    }
    s->slot[to++] = old->slot[k];
  }
  if (add) s->slot[to++] = *add;
  return s;
}

static void publish(struct vm *vm, unsigned as, struct memslots *s) {
  struct memslots *old = vm->slots[as];
  rcu_assign_pointer(vm->slots[as], s);
  synchronize_rcu();
  /* vCPUs read without RCU while they run: wait for each to pass its poll. */
  vm_request_all(vm, NULL, REQ_TLB_FLUSH, true);
  free(old);
}

/* api.rst 4.35 and __kvm_set_memory_region(): what is refused before anything is looked up. */
static int check_region(struct vm *vm, const struct kvm_userspace_memory_region *mem, unsigned as, unsigned id) {
  if (mem->flags & ~(KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY)) return -EINVAL;
  if (as >= vm->arch->address_spaces || id >= SLOT_IDS) return -EINVAL;
  if ((mem->memory_size | mem->guest_phys_addr | mem->userspace_addr) & (PAGE_SIZE - 1)) return -EINVAL;
  if (mem->userspace_addr >> 47) return -EINVAL; /* access_ok() */
  if (mem->userspace_addr + mem->memory_size < mem->userspace_addr || (mem->userspace_addr + mem->memory_size) >> 47 > 1) return -EINVAL;
  if (mem->guest_phys_addr + mem->memory_size < mem->guest_phys_addr) return -EINVAL;
  if (mem->memory_size >> PAGE_SHIFT > MAX_NPAGES) return -EINVAL;
  return 0;
}

static int change_slot(struct vm *vm, unsigned as, int at, struct memslot *new, enum slot_change change) {
  struct memslots *old = vm->slots[as];
  struct memslot was = at >= 0 ? old->slot[at] : (struct memslot){0};
  const struct memslot *was_p = at >= 0 ? &was : NULL;
  u64 *fresh = NULL;
  if (new) {
    bool logs = new->flags & KVM_MEM_LOG_DIRTY_PAGES, logged = was.dirty_bitmap != NULL;
    new->dirty_bitmap = logs && logged ? was.dirty_bitmap : NULL;
    if (logs && !logged) {
      fresh = dirty_bitmap_create(vm, new->npages);
      if (!fresh) return -ENOMEM;
      new->dirty_bitmap = fresh;
    }
  }
  int r = vm->arch->slot_prepare(vm, was_p, new, change);
  struct memslots *s = r ? NULL : rebuilt(old, at, new);
  if (!s) {
    free(fresh);
    return r ? r : -ENOMEM;
  }
  publish(vm, as, s);
  vm->arch->slot_commit(vm, was_p, new, change);
  vm_request_all(vm, NULL, REQ_TLB_FLUSH, true);
  if (was.dirty_bitmap && (!new || new->dirty_bitmap != was.dirty_bitmap)) free(was.dirty_bitmap);
  return 0;
}

static int set_region_locked(struct vm *vm, const struct kvm_userspace_memory_region *mem, unsigned as, u16 id) {
  int at = find_id(vm->slots[as], id);
  if (!mem->memory_size) return at < 0 ? -EINVAL : change_slot(vm, as, at, NULL, SLOT_DELETE);
  struct memslot new = {.base_gfn = mem->guest_phys_addr >> PAGE_SHIFT, .npages = mem->memory_size >> PAGE_SHIFT, .hva = mem->userspace_addr,
                        .flags = mem->flags, .id = id, .as_id = (u16)as};
  enum slot_change change = SLOT_CREATE;
  if (at >= 0) {
    const struct memslot *was = &vm->slots[as]->slot[at];
    if (was->hva != new.hva || was->npages != new.npages || ((was->flags ^ new.flags) & KVM_MEM_READONLY)) return -EINVAL;
    new.arch = was->arch;
    if (was->base_gfn != new.base_gfn) change = SLOT_MOVE;
    else if (was->flags != new.flags) change = SLOT_FLAGS;
    else return 0;
  }
  if ((change == SLOT_CREATE || change == SLOT_MOVE) && overlaps(vm->slots[as], &new)) return -EEXIST;
  return change_slot(vm, as, at, &new, change);
}

int vm_set_memory_region(struct vm *vm, const struct kvm_userspace_memory_region *mem) {
  unsigned as = mem->slot >> 16, id = mem->slot & 0xffff;
  int r = check_region(vm, mem, as, id);
  if (r) return r;
  pthread_mutex_lock(&vm->slots_lock);
  r = set_region_locked(vm, mem, as, (u16)id);
  pthread_mutex_unlock(&vm->slots_lock);
  return r;
}
