/* Dirty bitmaps: set by whoever writes guest memory, taken and cleared by the client.
 *
 * A writer sets the page's bit before its translation becomes writable; the translation stays writable until the next
 * REQ_TLB_FLUSH. Taking bits therefore goes: exchange the words, then flush and wait.  A write through a translation that was
 * still writable in between is in the words just taken; every later one finds a read-only translation and sets the bit again.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "base/fault.h"
#include "base/log.h"
#include "base/rcu.h"
#include "core/dirty.h"
#include "core/dirty_ring.h"
#include "core/vm_priv.h"

#define WORD_PAGES  64u
#define CHUNK_WORDS 512u /* copied to or from the client at a time */

static u64 bitmap_words(u64 npages) { return (npages + WORD_PAGES - 1) / WORD_PAGES; }

static void set_all(u64 *bitmap, u64 npages) {
  memset(bitmap, 0xff, npages / WORD_PAGES * sizeof(u64));
  if (npages % WORD_PAGES) bitmap[npages / WORD_PAGES] = BIT(npages % WORD_PAGES) - 1;
}

int dirty_bitmap_prepare(struct vm *vm, const struct memslot *old, struct memslot *new) {
  if (!(new->flags &KVM_MEM_LOG_DIRTY_PAGES)) return 0;
  if (old && old->dirty_bitmap) {
    new->dirty_bitmap = old->dirty_bitmap;
    return 0;
  }
  new->dirty_bitmap = calloc(bitmap_words(new->npages), sizeof(u64));
  if (!new->dirty_bitmap) return trace_error(-ENOMEM);
  if ((vm->dirty_flags & KVM_DIRTY_LOG_INITIALLY_SET) && !vm->dirty_ring_bytes) set_all(new->dirty_bitmap, new->npages);
  return 0;
}

void dirty_bitmap_drop(struct memslot *slot, const struct memslot *keeper) {
  if (!keeper || keeper->dirty_bitmap != slot->dirty_bitmap) free(slot->dirty_bitmap);
}

void mark_page_dirty(struct vcpu *vcpu, const struct memslot *slot, gfn_t gfn) {
  if (!slot->dirty_bitmap) return;
  u64 page = gfn - slot->base_gfn;
  u64 *word = &slot->dirty_bitmap[page / WORD_PAGES], bit = BIT(page % WORD_PAGES);
  /* seq_cst load: if the bit is seen set, the client has not taken it yet, and will flush after it takes it. */
  if (__atomic_load_n(word, __ATOMIC_SEQ_CST) & bit) return;
  u64 old = __atomic_fetch_or(word, bit, __ATOMIC_SEQ_CST);
  if (vcpu->dirty_ring && !(old & bit)) dirty_ring_push(vcpu, slot->as_id, slot->id, page);
}

static int find_logged(struct vm *vm, u32 slot, const struct memslot **out) {
  unsigned as_id = slot >> 16, id = slot & 0xffff;
  if (as_id >= vm->arch->address_spaces || id >= USER_MEM_SLOTS) return trace_error(-EINVAL);
  *out = memslot_by_id_locked(vm, as_id, id);
  return *out && (*out)->dirty_bitmap ? 0 : -ENOENT;
}

/* Takes the words of one chunk into `buffer`; with keep they stay set.  True when any bit was set. */
static bool take_chunk(u64 *bitmap, u64 *buffer, unsigned n, bool keep) {
  u64 any = 0;
  for (unsigned i = 0; i < n; i++) {
    u64 w = __atomic_load_n(&bitmap[i], __ATOMIC_RELAXED);
    if (w && !keep) w = __atomic_exchange_n(&bitmap[i], 0, __ATOMIC_SEQ_CST);
    buffer[i] = w;
    any |= w;
  }
  return any;
}

/* The client's address may be any: misaligned, or at the end of the address space. */
static void *client_words(const void *bitmap, u64 word) { return (void *)((uintptr_t)bitmap + word * sizeof(u64)); }

static int get_locked(struct vm *vm, const struct kvm_dirty_log *log) {
  const struct memslot *slot;
  int r = find_logged(vm, log->slot, &slot);
  if (r) return r;
  u64 buffer[CHUNK_WORDS], words = bitmap_words(slot->npages);
  bool keep = vm->dirty_flags & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, taken = false;
  for (u64 i = 0; i < words && !r; i += CHUNK_WORDS) {
    unsigned n = (unsigned)MIN(words - i, (u64)CHUNK_WORDS);
    if (take_chunk(slot->dirty_bitmap + i, buffer, n, keep)) taken = true;
    r = fault_copy(client_words(log->dirty_bitmap, i), buffer, n * sizeof(u64));
  }
  /* Also after a failed copy: what was taken must be protected again. */
  if (taken && !keep) vm_request_all(vm, NULL, REQ_TLB_FLUSH, true);
  return r;
}

int vm_get_dirty_log(struct vm *vm, const struct kvm_dirty_log *log) {
  if (vm->dirty_ring_bytes) return trace_error(-ENXIO);
  pthread_mutex_lock(&vm->slots_lock);
  int r = get_locked(vm, log);
  pthread_mutex_unlock(&vm->slots_lock);
  return r;
}

/* Clears in the log what is set in the client's words.  True when a bit was cleared. */
static bool clear_chunk(u64 *bitmap, const u64 *mask, unsigned n) {
  u64 any = 0;
  for (unsigned i = 0; i < n; i++)
    if (mask[i]) any |= __atomic_fetch_and(&bitmap[i], ~mask[i], __ATOMIC_SEQ_CST) & mask[i];
  return any;
}

static int clear_locked(struct vm *vm, const struct kvm_clear_dirty_log *log) {
  const struct memslot *slot;
  if (log->first_page % WORD_PAGES) return trace_error(-EINVAL);
  int r = find_logged(vm, log->slot, &slot);
  if (r) return r;
  u64 rest = slot->npages - log->first_page;
  if (log->first_page > slot->npages || log->num_pages > rest || (log->num_pages < rest && log->num_pages % WORD_PAGES))
    return trace_error(-EINVAL);
  u64 buffer[CHUNK_WORDS], *bitmap = slot->dirty_bitmap + log->first_page / WORD_PAGES, words = bitmap_words(log->num_pages);
  bool cleared = false;
  for (u64 i = 0; i < words && !r; i += CHUNK_WORDS) {
    unsigned n = (unsigned)MIN(words - i, (u64)CHUNK_WORDS);
    r = fault_copy(buffer, client_words(log->dirty_bitmap, i), n * sizeof(u64));
    if (!r && clear_chunk(bitmap + i, buffer, n)) cleared = true;
  }
  if (cleared) vm_request_all(vm, NULL, REQ_TLB_FLUSH, true);
  return r;
}

int vm_clear_dirty_log(struct vm *vm, const struct kvm_clear_dirty_log *log) {
  if (vm->dirty_ring_bytes) return trace_error(-ENXIO);
  pthread_mutex_lock(&vm->slots_lock);
  int r = clear_locked(vm, log);
  pthread_mutex_unlock(&vm->slots_lock);
  return r;
}

int vm_set_manual_dirty_protect(struct vm *vm, u64 bits) {
  u64 allowed = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE;
  if (bits & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE) allowed |= KVM_DIRTY_LOG_INITIALLY_SET;
  if (bits & ~allowed) return trace_error(-EINVAL);
  pthread_mutex_lock(&vm->slots_lock);
  vm->dirty_flags = bits;
  pthread_mutex_unlock(&vm->slots_lock);
  return 0;
}
