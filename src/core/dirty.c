/* Dirty bitmaps: set by whoever writes guest memory, taken and cleared by the client.
 *
 * A writer sets the page's bit before its translation becomes writable; the translation stays writable until the next
 * REQ_TLB_FLUSH. Taking bits therefore goes: exchange the words, then flush and wait.  A write through a translation that was
 * still writable in between is in the words just taken; every later one finds a read-only translation and sets the bit again.
 *
 * A log that begins with every page dirty keeps its bits the other way round, so that it, too, begins as zeros: pages of it that
 * nobody has looked at do not exist, and enabling takes as long for a large slot as for a small one.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "base/fault.h"
#include "base/log.h"
#include "base/rcu.h"
#include "core/dirty.h"
#include "core/dirty_ring.h"
#include "core/vm_priv.h"

#define WORD_PAGES  64u
#define CHUNK_WORDS 512u /* copied to or from the client at a time */

static u64 bitmap_words(u64 npages) {
  return (npages + WORD_PAGES - 1) / WORD_PAGES;
}

/* Small ones come from the heap, the others as pages that are not there until somebody writes them. */
static size_t mapped_bytes(u64 npages) {
  size_t bytes = ALIGN_UP(bitmap_words(npages) * sizeof(u64), (size_t)PAGE_SIZE);
  return bytes > PAGE_SIZE ? bytes : 0;
}

static u64 *bitmap_new(u64 npages) {
  size_t bytes = mapped_bytes(npages);
  if (!bytes) return calloc(bitmap_words(npages), sizeof(u64));
  void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? NULL : p;
}

static void bitmap_free(u64 *bitmap, u64 npages) {
  size_t bytes = mapped_bytes(npages);
  if (bytes)
    munmap(bitmap, bytes);
  else
    free(bitmap);
}

int dirty_bitmap_prepare(struct vm *vm, const struct memslot *old, struct memslot *new) {
  if (!(new->flags &KVM_MEM_LOG_DIRTY_PAGES)) return 0;
  if (old && old->dirty_bitmap) {
    new->dirty_bitmap = old->dirty_bitmap;
    new->dirty_clean = old->dirty_clean;
    return 0;
  }
  new->dirty_bitmap = bitmap_new(new->npages);
  if (!new->dirty_bitmap) return trace_error(-ENOMEM);
  if (!(vm->dirty_flags & KVM_DIRTY_LOG_INITIALLY_SET) || vm->dirty_ring_bytes) return 0;
  new->dirty_clean = ~0ull;
  unsigned tail = new->npages % WORD_PAGES;
  if (tail) new->dirty_bitmap[new->npages / WORD_PAGES] = ~0ull << tail; /* pages behind the slot's end are never dirty */
  return 0;
}

void dirty_bitmap_drop(struct memslot *slot, const struct memslot *keeper) {
  if (slot->dirty_bitmap && (!keeper || keeper->dirty_bitmap != slot->dirty_bitmap))
    bitmap_free(slot->dirty_bitmap, slot->npages);
}

bool dirty_enable_protects(const struct memslot *old, const struct memslot *new) {
  return new->dirty_bitmap && !old->dirty_bitmap && !new->dirty_clean;
}

/* ---- bits: set means dirty, whichever way round they are kept ---- */

static u64 word_of(const struct memslot *slot, u64 word) {
  /* seq_cst load: if a bit is seen set, the client has not taken it yet, and will flush after it takes it. */
  return __atomic_load_n(&slot->dirty_bitmap[word], __ATOMIC_SEQ_CST) ^ slot->dirty_clean;
}

/* The word as it was before. */
static u64 word_or(const struct memslot *slot, u64 word, u64 bits) {
  u64 *at = &slot->dirty_bitmap[word];
  if (slot->dirty_clean) return ~__atomic_fetch_and(at, ~bits, __ATOMIC_SEQ_CST);
  return __atomic_fetch_or(at, bits, __ATOMIC_SEQ_CST);
}

void mark_page_dirty(struct vcpu *vcpu, const struct memslot *slot, gfn_t gfn) {
  if (!slot->dirty_bitmap) return;
  u64 page = gfn - slot->base_gfn, word = page / WORD_PAGES, bit = BIT(page % WORD_PAGES);
  if (word_of(slot, word) & bit) return;
  u64 old = word_or(slot, word, bit);
  if (vcpu->dirty_ring && !(old & bit)) dirty_ring_push(vcpu, slot->as_id, slot->id, page);
}

static int find_logged(struct vm *vm, u32 slot, const struct memslot **out) {
  unsigned as_id = slot >> 16, id = slot & 0xffff;
  if (as_id >= vm->arch->address_spaces || id >= USER_MEM_SLOTS) return trace_error(-EINVAL);
  *out = memslot_by_id_locked(vm, as_id, id);
  return *out && (*out)->dirty_bitmap ? 0 : -ENOENT;
}

/* Takes words from `first` on into `buffer`; with keep they stay as they are.  True when any bit was set. */
static bool take_chunk(const struct memslot *slot, u64 first, u64 *buffer, unsigned n, bool keep) {
  u64 any = 0, clean = slot->dirty_clean, *bitmap = slot->dirty_bitmap + first;
  for (unsigned i = 0; i < n; i++) {
    u64 w = __atomic_load_n(&bitmap[i], __ATOMIC_RELAXED) ^ clean;
    if (w && !keep) w = __atomic_exchange_n(&bitmap[i], clean, __ATOMIC_SEQ_CST) ^ clean;
    buffer[i] = w;
    any |= w;
  }
  return any;
}

/* The client's address may be any: misaligned, or at the end of the address space. */
static void *client_words(const void *bitmap, u64 word) {
  return (void *)((uintptr_t)bitmap + word * sizeof(u64));
}

static int get_locked(struct vm *vm, const struct kvm_dirty_log *log) {
  const struct memslot *slot;
  int r = find_logged(vm, log->slot, &slot);
  if (r) return r;
  u64 buffer[CHUNK_WORDS], words = bitmap_words(slot->npages);
  bool keep = vm->dirty_flags & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, taken = false;
  for (u64 i = 0; i < words && !r; i += CHUNK_WORDS) {
    unsigned n = (unsigned)MIN(words - i, (u64)CHUNK_WORDS);
    if (take_chunk(slot, i, buffer, n, keep)) taken = true;
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
static bool clear_chunk(const struct memslot *slot, u64 first, const u64 *mask, unsigned n) {
  u64 any = 0;
  for (unsigned i = 0; i < n; i++)
    if (mask[i]) any |= dirty_word_clear(slot, first + i, mask[i]);
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
  u64 buffer[CHUNK_WORDS], first = log->first_page / WORD_PAGES, words = bitmap_words(log->num_pages);
  bool cleared = false;
  for (u64 i = 0; i < words && !r; i += CHUNK_WORDS) {
    unsigned n = (unsigned)MIN(words - i, (u64)CHUNK_WORDS);
    r = fault_copy(buffer, client_words(log->dirty_bitmap, i), n * sizeof(u64));
    if (!r && clear_chunk(slot, first + i, buffer, n)) cleared = true;
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
