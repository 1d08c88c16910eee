/* Memory slots: checks, publication, and the wait until nobody uses what was replaced.
 *
 * Readers are of two kinds.  vCPU threads read between vcpu_enter() and vcpu_leave() without any lock and may keep what they
 * derived (translations, host addresses) until they handle REQ_TLB_FLUSH; other threads read inside rcu_read_lock().  There are
 * two arrays per address space.  A change is made in the idle one, which is then published; both kinds of readers are waited for
 * (vm_request_all(wait) and synchronize_rcu()); then the same change is made in the other one, and what only the
 * old state referred to is freed.  slots_lock is held throughout; no vCPU takes it between enter and leave.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "base/rcu.h"
#include "core/dirty.h"
#include "core/memslot.h"
#include "core/vm_priv.h"

#define MAX_PAGES ((1ull << 31) - 1)
#define USER_TOP  ((1ull << 47) - PAGE_SIZE) /* end of the address space a 4-level host gives to programs */

const struct memslot *memslot_find(const struct memslots *slots, gfn_t gfn) {
  unsigned low = 0, high = slots->n;
  while (low < high) { /* the first slot that begins behind gfn */
    unsigned mid = (low + high) / 2;
    if (slots->slot[mid].base_gfn <= gfn)
      low = mid + 1;
    else
      high = mid;
  }
  if (!low) return NULL;
  const struct memslot *s = &slots->slot[low - 1];
  return gfn - s->base_gfn < s->npages ? s : NULL;
}

/* ---- look-up by id ---- */

const struct memslot *memslot_by_id_locked(struct vm *vm, unsigned as_id, unsigned id) {
  struct vm_priv *p = vm->priv;
  if (id >= p->slot_room[as_id] || !p->slot_base[as_id][id]) return NULL;
  return memslot_find(vm->slots[as_id], p->slot_base[as_id][id] - 1);
}

static int reserve_id(struct vm_priv *p, unsigned as_id, unsigned id) {
  unsigned old = p->slot_room[as_id], room = MAX(old, 64u);
  while (room <= id) room *= 2;
  if (room == old) return 0;
  u64 *base = realloc(p->slot_base[as_id], room * sizeof(*base));
  if (!base) return trace_error(-ENOMEM);
  memset(base + old, 0, (room - old) * sizeof(*base));
  p->slot_base[as_id] = base;
  p->slot_room[as_id] = room;
  return 0;
}

/* ---- checks ---- */

/* What can be said without looking at the present slots (api.rst, KVM_SET_USER_MEMORY_REGION). */
static int check_region(const struct vm *vm, const struct kvm_userspace_memory_region *m) {
  if (m->flags & ~(KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY)) return -EINVAL;
  if ((m->memory_size | m->guest_phys_addr | m->userspace_addr) & (PAGE_SIZE - 1)) return -EINVAL;
  if (m->memory_size > USER_TOP || m->userspace_addr > USER_TOP - m->memory_size) return -EINVAL;
  if ((m->slot >> 16) >= vm->arch->address_spaces || (m->slot & 0xffff) >= USER_MEM_SLOTS) return -EINVAL;
  if (m->guest_phys_addr + m->memory_size < m->guest_phys_addr) return -EINVAL;
  if ((m->memory_size >> PAGE_SHIFT) > MAX_PAGES) return -EINVAL;
  return 0;
}

/* Whether [base, base + n) touches a slot other than `except`.  The slots are sorted and disjoint: only the neighbours matter. */
static bool overlaps(const struct memslots *slots, gfn_t base, u64 n, const struct memslot *except) {
  unsigned low = 0, high = slots->n;
  while (low < high) { /* the first slot that ends behind base */
    unsigned mid = (low + high) / 2;
    if (slots->slot[mid].base_gfn + slots->slot[mid].npages <= base)
      low = mid + 1;
    else
      high = mid;
  }
  for (; low < slots->n && slots->slot[low].base_gfn < base + n; low++)
    if (&slots->slot[low] != except) return true;
  return false;
}

/* What the request means for the slot.  1: nothing to do. */
static int classify(const struct memslot *old, const struct memslot *new, enum slot_change *change) {
  if (!new->npages) {
    *change = SLOT_DELETE;
    return old ? 0 : -EINVAL;
  }
  if (!old) {
    *change = SLOT_CREATE;
    return 0;
  }
  if (new->hva != old->hva || new->npages != old->npages || ((new->flags ^ old->flags) & KVM_MEM_READONLY)) return -EINVAL;
  *change = new->base_gfn != old->base_gfn ? SLOT_MOVE : SLOT_FLAGS;
  return *change == SLOT_FLAGS && new->flags == old->flags;
}

/* ---- publication ---- */

static size_t array_size(unsigned room) { return sizeof(struct memslots) + room * sizeof(struct memslot); }

static struct memslots *alloc_array(unsigned room) {
  struct memslots *s = malloc(array_size(room));
  if (s) *s = (struct memslots){.room = room};
  return s;
}

static unsigned index_of(const struct memslots *s, gfn_t base_gfn) {
  unsigned low = 0, high = s->n;
  while (low < high) { /* the first slot that begins at or behind base_gfn */
    unsigned mid = (low + high) / 2;
    if (s->slot[mid].base_gfn < base_gfn)
      low = mid + 1;
    else
      high = mid;
  }
  return low;
}

/* Takes the slot that begins at *remove out and puts *add in, in order.  Either may be NULL.  There is room. */
static void edit(struct memslots *s, const gfn_t *remove, const struct memslot *add) {
  if (remove) {
    unsigned at = index_of(s, *remove);
    s->n--;
    memmove(&s->slot[at], &s->slot[at + 1], (s->n - at) * sizeof(s->slot[0]));
  }
  if (add) {
    unsigned at = index_of(s, add->base_gfn);
    memmove(&s->slot[at + 1], &s->slot[at], (s->n - at) * sizeof(s->slot[0]));
    s->slot[at] = *add;
    s->n++;
  }
}

struct replacement {
  struct vm *vm;
  unsigned as_id, id;
  enum slot_change change;
  const struct memslot *old; /* in the published array, or NULL */
  struct memslot *new;       /* or NULL */
};

/* Makes sure that both arrays can hold one more: the idle one grows in place; for the published one a larger *successor is made.
 */
static int reserve_slot(struct vm *vm, unsigned as_id, struct memslots **successor) {
  struct memslots **idle = &vm->priv->idle[as_id];
  unsigned need = vm->slots[as_id]->n + 1, room = MAX(need * 2, 16u);
  *successor = NULL;
  if ((*idle)->room < need) {
    struct memslots *bigger = realloc(*idle, array_size(room));
    if (!bigger) return trace_error(-ENOMEM);
    bigger->room = room;
    *idle = bigger;
  }
  if (vm->slots[as_id]->room >= need) return 0;
  *successor = alloc_array(room);
  return *successor ? 0 : trace_error(-ENOMEM);
}

/* Everything that may fail.  On failure nothing has changed. */
static int prepare(struct replacement *r, struct memslots **successor) {
  struct vm *vm = r->vm;
  int err = reserve_id(vm->priv, r->as_id, r->id);
  if (!err) err = reserve_slot(vm, r->as_id, successor);
  if (err) return err;
  if (r->new) err = dirty_bitmap_prepare(vm, r->old, r->new);
  if (!err && vm->arch->slot_prepare) err = vm->arch->slot_prepare(vm, r->old, r->new, r->change);
  if (!err) return 0;
  free(*successor);
  if (r->new) dirty_bitmap_drop(r->new, r->old);
  return err;
}

/* New flags leave memory where it is: nobody has to drop translations unless writes have to be noticed from now on. */
static unsigned request_for(const struct replacement *r) {
  return r->change == SLOT_FLAGS && !dirty_enable_protects(r->old, r->new) ? REQ_SYNC : REQ_TLB_FLUSH;
}

/* Cannot fail. */
static void commit(struct replacement *r, struct memslots *successor) {
  struct vm *vm = r->vm;
  struct memslots *was = vm->slots[r->as_id], *next = vm->priv->idle[r->as_id];
  struct memslot old = r->old ? *r->old : (struct memslot){0};
  const gfn_t *remove = r->old ? &old.base_gfn : NULL;
  unsigned request = request_for(r);
  edit(next, remove, r->new);
  next->generation = ++vm->priv->generation;
  __atomic_store_n(&vm->slots[r->as_id], next, __ATOMIC_RELEASE);
  vm->priv->slot_base[r->as_id][r->id] = r->new ? r->new->base_gfn + 1 : 0;
  if (vm->arch->slot_commit) vm->arch->slot_commit(vm, r->old, r->new, r->change);
  vm_request_all(vm, NULL, request, true);
  synchronize_rcu();
  /* Nobody reads `was` any more. */
  if (successor) {
    successor->n = next->n;
    memcpy(successor->slot, next->slot, next->n * sizeof(next->slot[0]));
    free(was);
    was = successor;
  } else {
    edit(was, remove, r->new);
  }
  vm->priv->idle[r->as_id] = was;
  if (r->old) dirty_bitmap_drop(&old, r->new);
}

static int set_region_locked(struct vm *vm, const struct kvm_userspace_memory_region *m) {
  unsigned as_id = m->slot >> 16;
  struct memslot new = {.base_gfn = m->guest_phys_addr >> PAGE_SHIFT,
                        .npages = m->memory_size >> PAGE_SHIFT,
                        .hva = m->userspace_addr,
                        .flags = m->flags,
                        .id = (u16)m->slot,
                        .as_id = (u16)as_id};
  struct replacement r = {.vm = vm, .as_id = as_id, .id = new.id, .old = memslot_by_id_locked(vm, as_id, new.id)};
  int err = classify(r.old, &new, &r.change);
  if (err) return err > 0 ? 0 : trace_error(err);
  if ((r.change == SLOT_CREATE || r.change == SLOT_MOVE) && overlaps(vm->slots[as_id], new.base_gfn, new.npages, r.old))
    return -EEXIST;
  if (r.change != SLOT_DELETE) r.new = &new;
  if (r.old) new.arch = r.old->arch;
  struct memslots *successor;
  err = prepare(&r, &successor);
  if (!err) commit(&r, successor);
  return err;
}

int vm_set_memory_region(struct vm *vm, const struct kvm_userspace_memory_region *mem) {
  int r = check_region(vm, mem);
  if (r) return trace_error(r);
  pthread_mutex_lock(&vm->slots_lock);
  r = set_region_locked(vm, mem);
  pthread_mutex_unlock(&vm->slots_lock);
  return r;
}

/* ---- life cycle ---- */

int memslots_create(struct vm *vm) {
  for (unsigned i = 0; i < ARRAY_SIZE(vm->slots); i++) {
    vm->slots[i] = alloc_array(0);
    vm->priv->idle[i] = alloc_array(0);
    if (!vm->slots[i] || !vm->priv->idle[i]) return trace_error(-ENOMEM);
    vm->slots[i]->generation = ++vm->priv->generation;
  }
  return 0;
}

void memslots_destroy(struct vm *vm) {
  for (unsigned i = 0; i < ARRAY_SIZE(vm->slots); i++) {
    struct memslots *s = vm->slots[i];
    for (unsigned k = 0; s && k < s->n; k++) dirty_bitmap_drop(&s->slot[k], NULL);
    free(s);
    free(vm->priv->idle[i]);
    free(vm->priv->slot_base[i]);
  }
}
