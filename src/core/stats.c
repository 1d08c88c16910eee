/* The binary statistics file: layout, creation, and its descriptor (Documentation/virt/kvm/api.rst, KVM_GET_STATS_FD). */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "base/log.h"
#include "base/ownfd.h"
#include "base/process.h"
#include "core/stats.h"
#include "core/stats_arena.h"

#define NAME_SIZE 48

#define COUNTER      (KVM_STATS_TYPE_CUMULATIVE | KVM_STATS_UNIT_NONE | KVM_STATS_BASE_POW10)
#define BYTES        (KVM_STATS_TYPE_CUMULATIVE | KVM_STATS_UNIT_BYTES | KVM_STATS_BASE_POW2)
#define GAUGE        (KVM_STATS_TYPE_INSTANT | KVM_STATS_UNIT_NONE | KVM_STATS_BASE_POW10)
#define PEAK         (KVM_STATS_TYPE_PEAK | KVM_STATS_UNIT_NONE | KVM_STATS_BASE_POW10)
#define TIME_NS      (KVM_STATS_TYPE_CUMULATIVE | KVM_STATS_UNIT_SECONDS | KVM_STATS_BASE_POW10)
#define HIST_NS      (KVM_STATS_TYPE_LOG_HIST | KVM_STATS_UNIT_SECONDS | KVM_STATS_BASE_POW10)
#define FLAG         (KVM_STATS_TYPE_INSTANT | UNIT_BOOLEAN | KVM_STATS_BASE_POW10)
#define UNIT_BOOLEAN (4u << KVM_STATS_UNIT_SHIFT) /* KVM_STATS_UNIT_BOOLEAN, newer than some headers */

struct description {
  struct kvm_stats_desc desc;
  char name[NAME_SIZE];
};

#define IN_SECONDS(kind) (((kind)&KVM_STATS_UNIT_MASK) == KVM_STATS_UNIT_SECONDS)
#define DESCRIBE(structure, stat, kind, values)                                                                                  \
  {                                                                                                                              \
      .desc = {.flags = (kind),                                                                                                  \
               .exponent = IN_SECONDS(kind) ? -9 : 0,                                                                            \
               .size = (values),                                                                                                 \
               .offset = offsetof(struct structure, stat)},                                                                      \
      .name = #stat,                                                                                                             \
  },

static const struct description vm_descriptions[] = {
#define STAT_VM(name, kind, values) DESCRIBE(vm_stats, name, kind, values)
#define STAT_VCPU(name, kind, values)
#define STAT(owner, name, kind, values) STAT_##owner(name, kind, values)
#include "core/stats.def"
#undef STAT_VM
#undef STAT_VCPU
};

static const struct description vcpu_descriptions[] = {
#define STAT_VM(name, kind, values)
#define STAT_VCPU(name, kind, values) DESCRIBE(vcpu_stats, name, kind, values)
#include "core/stats.def"
};

/* The head of a block's memory.  Ours alone is what lies behind the values. */
struct layout {
  struct kvm_stats_header header;
  char id[NAME_SIZE];
  struct description descriptions[];
};

/* Where a block keeps what is not part of the file: in the page behind it. */
struct block_tail {
  pthread_mutex_t lock;
  int memfd; /* [lock] -1 until the first client asked */
  size_t file_size;
};

static size_t head_size(unsigned n) {
  return sizeof(struct layout) + n * sizeof(struct description);
}
static size_t map_size(size_t file_size) {
  return ALIGN_UP(file_size, (size_t)PAGE_SIZE);
}
_Static_assert(sizeof(struct layout) + MAX(sizeof(vm_descriptions) + sizeof(struct vm_stats),
                                           sizeof(vcpu_descriptions) + sizeof(struct vcpu_stats)) <=
                   UVIRT_STATS_SLOT - PAGE_SIZE,
               "a block and its tail fit into a slot");
static struct block_tail *tail_of(struct layout *l, size_t file_size) {
  return (void *)((char *)l + map_size(file_size));
}

/* Returns the values' address. */
static void *block_create(const struct description *d, unsigned n, size_t data_size, const char *id) {
  size_t file_size = head_size(n) + data_size;
  struct layout *l = stats_slot_alloc();
  if (!l) return NULL;
  l->header = (struct kvm_stats_header){.name_size = NAME_SIZE,
                                        .id_offset = sizeof(struct kvm_stats_header),
                                        .desc_offset = sizeof(struct layout),
                                        .data_offset = (u32)head_size(n)};
  snprintf(l->id, sizeof(l->id), "%s", id);
  memcpy(l->descriptions, d, n * sizeof(*d));
  struct block_tail *t = tail_of(l, file_size);
  pthread_mutex_init(&t->lock, NULL);
  t->memfd = -1;
  t->file_size = file_size;
  __atomic_store_n(&l->header.num_desc, n, __ATOMIC_RELEASE); /* a reader of the arena sees all of it or nothing */
  return (char *)l + head_size(n);
}

static void block_destroy(void *values, unsigned n, size_t data_size) {
  if (!values) return;
  struct layout *l = (void *)((char *)values - head_size(n));
  size_t file_size = head_size(n) + data_size;
  struct block_tail *t = tail_of(l, file_size);
  own_fd_close(t->memfd);
  stats_slot_free(l);
}

/* Turns the block's pages into a file's.  Values counted by other threads between the copy and the switch are lost: a few, once.
 */
static int make_file(struct layout *l, struct block_tail *t) {
  int fd = own_fd(memfd_create(UVIRT_STATS_OWN_FILE, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (fd < 0) return -errno;
  size_t size = map_size(t->file_size);
  int r = 0;
  if (ftruncate(fd, (off_t)t->file_size) || pwrite(fd, l, t->file_size, 0) != (ssize_t)t->file_size ||
      mmap(l, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
    r = -errno;
  /* From here on only our mapping may write. */
  if (!r && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL)) r = -errno;
  if (r) {
    own_fd_close(fd);
    return r;
  }
  t->memfd = fd;
  stats_slot_hide(l, size); /* `uvirt stat` finds the new file */
  return 0;
}

/* A new open file description, so that every descriptor has its own position. */
static int reopen(int memfd) {
  char path[32];
  snprintf(path, sizeof(path), "/proc/self/fd/%d", memfd);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  return fd < 0 ? -errno : fd;
}

static int block_fd(void *values, unsigned n, size_t data_size) {
  struct layout *l = (void *)((char *)values - head_size(n));
  struct block_tail *t = tail_of(l, head_size(n) + data_size);
  pthread_mutex_lock(&t->lock);
  int r = t->memfd < 0 ? make_file(l, t) : 0;
  if (!r) r = reopen(t->memfd);
  pthread_mutex_unlock(&t->lock);
  return r;
}

int vm_stats_create(struct vm *vm) {
  char id[NAME_SIZE];
  snprintf(id, sizeof(id), "kvm-%d", process_pid());
  vm->stats = block_create(vm_descriptions, ARRAY_SIZE(vm_descriptions), sizeof(*vm->stats), id);
  return vm->stats ? 0 : trace_error(-ENOMEM);
}

int vcpu_stats_create(struct vcpu *vcpu) {
  char id[NAME_SIZE];
  snprintf(id, sizeof(id), "kvm-%d/vcpu-%u", process_pid(), vcpu->id);
  vcpu->stats = block_create(vcpu_descriptions, ARRAY_SIZE(vcpu_descriptions), sizeof(*vcpu->stats), id);
  return vcpu->stats ? 0 : trace_error(-ENOMEM);
}

void vm_stats_destroy(struct vm *vm) {
  block_destroy(vm->stats, ARRAY_SIZE(vm_descriptions), sizeof(*vm->stats));
}
void vcpu_stats_destroy(struct vcpu *vcpu) {
  block_destroy(vcpu->stats, ARRAY_SIZE(vcpu_descriptions), sizeof(*vcpu->stats));
}
int vm_stats_fd(struct vm *vm) {
  return block_fd(vm->stats, ARRAY_SIZE(vm_descriptions), sizeof(*vm->stats));
}
int vcpu_stats_fd(struct vcpu *vcpu) {
  return block_fd(vcpu->stats, ARRAY_SIZE(vcpu_descriptions), sizeof(*vcpu->stats));
}
