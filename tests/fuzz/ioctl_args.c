/* Arguments of the ioctl fuzzer.
 *
 * Every row of the tables gets an argument without further work: zeroes, random bytes, or, for KVM_SET_x, what KVM_GET_x has just
 * answered, all with a few fields changed.  `fills` makes better ones where random bytes seldom pass the first check. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "ioctl.h"
#include "uvirt.h"
#include "x86/api/api.h"

enum { MAX_ROWS = 128, MAX_MSRS = 512, MAX_CPUID = 256, CAPS = 260, ROUTES = 64 };

/* ---- what is valid ---- */

static u32 msrs[MAX_MSRS];
static unsigned n_msrs;
static struct kvm_cpuid_entry2 cpuid[MAX_CPUID];
static unsigned n_cpuid;

/* ---- rows ---- */

struct row_list {
  const struct ioctl_row *row[MAX_ROWS];
  unsigned n;
};

static void add_rows(struct row_list *list, const struct ioctl_row *row, unsigned n) {
  for (unsigned k = 0; k < n && list->n < MAX_ROWS; k++) list->row[list->n++] = &row[k];
}

static struct row_list lists[FD_KINDS];

static void collect_rows(void) {
  add_rows(&lists[FD_SYSTEM], x86_arch.system_ioctls, x86_arch.n_system_ioctls);
  add_rows(&lists[FD_SYSTEM], kvm_system_rows.row, kvm_system_rows.n);
  add_rows(&lists[FD_VM], x86_arch.vm_ioctls, x86_arch.n_vm_ioctls);
  add_rows(&lists[FD_VM], kvm_vm_rows.row, kvm_vm_rows.n);
  add_rows(&lists[FD_VCPU], x86_arch.vcpu_ioctls, x86_arch.n_vcpu_ioctls);
  add_rows(&lists[FD_VCPU], kvm_vcpu_rows.row, kvm_vcpu_rows.n);
  add_rows(&lists[FD_DEVICE], kvm_device_rows.row, kvm_device_rows.n);
}

unsigned rows_of(enum fd_kind kind, const struct ioctl_row *const **rows) {
  *rows = lists[kind].row;
  return lists[kind].n;
}

/* KVM_GET_x for KVM_SET_x, with an argument of the same size. */
static const struct ioctl_row *twin(enum fd_kind kind, const struct ioctl_row *row) {
  const struct ioctl_row *const *rows;
  unsigned n = strncmp(row->name, "KVM_SET_", 8) ? 0 : rows_of(kind, &rows);
  for (unsigned k = 0; k < n; k++)
    if (!strncmp(rows[k]->name, "KVM_GET_", 8) && !strcmp(rows[k]->name + 8, row->name + 8)) return rows[k];
  return NULL;
}

void args_learn(int system_fd) {
  struct {
    struct kvm_msr_list head;
    u32 index[MAX_MSRS];
  } list = {.head.nmsrs = MAX_MSRS};
  static struct {
    struct kvm_cpuid2 head;
    struct kvm_cpuid_entry2 entry[MAX_CPUID];
  } answer = {.head.nent = MAX_CPUID};
  if (uvirt_ioctl(system_fd, KVM_GET_MSR_INDEX_LIST, &list) || uvirt_ioctl(system_fd, KVM_GET_SUPPORTED_CPUID, &answer)) abort();
  n_msrs = list.head.nmsrs;
  n_cpuid = answer.head.nent;
  memcpy(msrs, list.index, sizeof(msrs));
  memcpy(cpuid, answer.entry, sizeof(cpuid));
  collect_rows();
}

/* The processor shows everything it has. */
void args_set_cpuid(int vcpu) {
  struct {
    struct kvm_cpuid2 head;
    struct kvm_cpuid_entry2 entry[MAX_CPUID];
  } id = {.head.nent = n_cpuid};
  memcpy(id.entry, cpuid, sizeof(cpuid));
  uvirt_ioctl(vcpu, KVM_SET_CPUID2, &id);
}

/* ---- fills ---- */

static u64 pointer(struct caller *c) {
  static const u64 bad[] = {0,     1,        0xfff, 0x1000, 1ull << 47, (1ull << 47) - 0x1000, 1ull << 63, 0xffff800000000000,
                            ~0ull, ~0xfffull};
  struct source *s = &c->source;
  switch (choose_below(s, 4)) {
  case 0:
    return bad[choose_below(s, ARRAY_SIZE(bad))];
  case 1:
    return (u64)(uintptr_t)c->room + ARG_ROOM / 2 + choose_below(s, ARG_ROOM / 2);
  default:
    return (u64)(uintptr_t)memory_any(s);
  }
}

static u64 gpa(struct source *s) {
  u64 at = choose_below(s, 32) * 0x80000 + choose_below(s, 4) * 0x1000;
  switch (choose_below(s, 8)) {
  case 0:
    return choose_odd(s);
  case 1:
    return 0xfee00000 + choose_below(s, 0x400);
  case 2:
    return at + choose_below(s, 0x1000);
  default:
    return at;
  }
}

static int eventfd_of(struct caller *c) {
  return choose_below(&c->source, 8) ? c->eventfds[choose_below(&c->source, EVENTFDS)] : (int)choose_below(&c->source, 64) - 2;
}

static void fill_region(struct caller *c, void *data) {
  struct kvm_userspace_memory_region *m = data;
  struct source *s = &c->source;
  unsigned piece = (unsigned)choose_below(s, PIECES);
  size_t at = choose_below(s, 2) ? 0 : choose_below(s, 255) * 0x1000;
  *m = (struct kvm_userspace_memory_region){.slot = (u32)choose_below(s, 8) | (choose_below(s, 4) ? 0 : 0x10000),
                                            .flags = choose_below(s, 2) ? 0 : (u32)choose_below(s, 4),
                                            .guest_phys_addr = gpa(s) & ~0xfffull,
                                            .memory_size = PIECE_SIZE - at,
                                            .userspace_addr = (u64)(uintptr_t)memory_piece(piece) + at};
  if (!choose_below(s, 2)) m->guest_phys_addr = (u64)piece << 20;
  if (!choose_below(s, 4)) m->memory_size = 0x1000 * choose_below(s, 256);
}

/* Whatever it has become, it lies in the fuzzer's own memory or is refused. */
static void tame_region(void *data) {
  struct kvm_userspace_memory_region *m = data;
  bool refused = ((m->userspace_addr | m->memory_size) & 0xfff) || !m->memory_size;
  if (!refused && !memory_contains(m->userspace_addr, m->memory_size)) {
    m->userspace_addr = (u64)(uintptr_t)memory_piece(0);
    m->memory_size = m->memory_size % (PIECES * PIECE_SIZE) & ~0xfffull;
  }
}

static void fill_log(struct caller *c, void *data) {
  struct kvm_dirty_log *l = data;
  l->slot = (u32)choose_below(&c->source, 8);
  l->dirty_bitmap = (void *)(uintptr_t)pointer(c);
}

static void fill_clear(struct caller *c, void *data) {
  struct kvm_clear_dirty_log *l = data;
  struct source *s = &c->source;
  *l = (struct kvm_clear_dirty_log){.slot = (u32)choose_below(s, 8),
                                    .num_pages = choose_below(s, 3) ? 64 * choose_below(s, 5) : (u32)choose_odd(s)};
  l->first_page = 64 * choose_below(s, 5);
  l->dirty_bitmap = (void *)(uintptr_t)pointer(c);
}

static void fill_irqfd(struct caller *c, void *data) {
  struct kvm_irqfd *i = data;
  struct source *s = &c->source;
  *i = (struct kvm_irqfd){.fd = (u32)eventfd_of(c),
                          .gsi = (u32)choose_below(s, 26),
                          .flags = (u32)choose_below(s, 4),
                          .resamplefd = (u32)eventfd_of(c)};
}

static void fill_ioeventfd(struct caller *c, void *data) {
  struct kvm_ioeventfd *i = data;
  struct source *s = &c->source;
  *i = (struct kvm_ioeventfd){
      .datamatch = choose_below(s, 3), .len = 1u << choose_below(s, 4), .fd = eventfd_of(c), .flags = (u32)choose_below(s, 8)};
  i->addr = i->flags & KVM_IOEVENTFD_FLAG_PIO ? choose_below(s, 256) : gpa(s);
  if (!choose_below(s, 8)) i->len = 0;
}

static void fill_coalesced(struct caller *c, void *data) {
  struct kvm_coalesced_mmio_zone *z = data;
  struct source *s = &c->source;
  z->pio = (u32)choose_below(s, 2);
  z->addr = z->pio ? choose_below(s, 256) : gpa(s);
  z->size = choose_below(s, 2) ? 0x1000 : (u32)choose_odd(s);
}

static void fill_cap(struct caller *c, void *data) {
  struct kvm_enable_cap *e = data;
  struct source *s = &c->source;
  *e = (struct kvm_enable_cap){.cap = (u32)choose_below(s, CAPS)};
  for (unsigned k = 0; k < 4; k++) e->args[k] = choose_below(s, 3) ? choose_below(s, 8) : 1ull << choose_below(s, 64);
  if (e->cap == KVM_CAP_DIRTY_LOG_RING || e->cap == KVM_CAP_DIRTY_LOG_RING_ACQ_REL) e->args[0] = 0x1000ull << choose_below(s, 5);
}

static void fill_msrs(struct caller *c, void *data) {
  static const u32 more[] = {0x800, 0x4b564d00, 0x40000000, 0xc0000080, 0xc1, 0x186, 0x400, 0x200, 0x6e0};
  struct kvm_msrs *m = data;
  struct source *s = &c->source;
  m->nmsrs = (u32)(choose_below(s, 8) ? choose_below(s, 32) : choose_below(s, 1000));
  for (u32 k = 0; k < MIN(m->nmsrs, (ARG_ROOM - 8) / 16); k++) {
    u32 index =
        choose_below(s, 4) ? msrs[choose_below(s, n_msrs)] : more[choose_below(s, ARRAY_SIZE(more))] + (u32)choose_below(s, 64);
    m->entries[k] = (struct kvm_msr_entry){.index = index,
                                           .data = choose_below(s, 2)   ? choose_below(s, 256)
                                                   : choose_below(s, 2) ? gpa(s) | 1
                                                                        : choose(s)};
  }
}

static void fill_cpuid(struct caller *c, void *data) {
  struct kvm_cpuid2 *l = data;
  struct source *s = &c->source;
  l->nent = choose_below(s, 4) ? n_cpuid : (u32)choose_below(s, 300);
  for (u32 k = 0; k < MIN(l->nent, (u32)MAX_CPUID); k++) l->entries[k] = cpuid[k];
  for (size_t k = choose_below(s, 8); k > 6; k--) {
    struct kvm_cpuid_entry2 *e = &l->entries[choose_below(s, n_cpuid)];
    ((u32 *)e)[choose_below(s, 10)] ^= 1u << choose_below(s, 32);
  }
}

static void fill_msr_filter(struct caller *c, void *data) {
  struct kvm_msr_filter *f = data;
  struct source *s = &c->source;
  memset(f, 0, sizeof(*f));
  f->flags = (u32)choose_below(s, 2);
  for (size_t k = choose_below(s, 17); k; k--)
    f->ranges[k - 1] = (struct kvm_msr_filter_range){.flags = (u32)choose_below(s, 4),
                                                     .nmsrs = (u32)choose_below(s, 0x801),
                                                     .base = msrs[choose_below(s, n_msrs)],
                                                     .bitmap = (u8 *)(uintptr_t)pointer(c)};
}

static void fill_pmu_filter(struct caller *c, void *data) {
  struct kvm_pmu_event_filter *f = data;
  struct source *s = &c->source;
  *f = (struct kvm_pmu_event_filter){
      .action = (u32)choose_below(s, 3), .nevents = (u32)choose_below(s, 320), .fixed_counter_bitmap = (u32)choose_below(s, 8)};
  for (unsigned k = 0; k < f->nevents; k++) f->events[k] = choose_below(s, 0x10000);
}

static void fill_routing(struct caller *c, void *data) {
  struct kvm_irq_routing *r = data;
  struct source *s = &c->source;
  *r = (struct kvm_irq_routing){.nr = (u32)choose_below(s, ROUTES)};
  for (u32 k = 0; k < r->nr; k++) {
    struct kvm_irq_routing_entry *e = &r->entries[k];
    *e = (struct kvm_irq_routing_entry){.gsi = choose_below(s, 8) ? k : (u32)choose_below(s, 64),
                                        .type = choose_below(s, 8) ? 1 + (u32)choose_below(s, 2) : (u32)choose_below(s, 6)};
    if (e->type == KVM_IRQ_ROUTING_MSI) {
      e->u.msi.address_lo = 0xfee00000 | (u32)choose_below(s, 4) << 12 | (u32)choose_below(s, 16);
      e->u.msi.data = (u32)choose_below(s, 0x10000);
    } else {
      e->u.irqchip.irqchip = (u32)choose_below(s, 4);
      e->u.irqchip.pin = (u32)choose_below(s, e->u.irqchip.irqchip == 2 ? 25 : 9);
    }
  }
}

static void fill_line(struct caller *c, void *data) {
  struct kvm_irq_level *l = data;
  *l = (struct kvm_irq_level){.irq = (u32)choose_below(&c->source, 26), .level = (u32)choose_below(&c->source, 2)};
}

static void fill_msi(struct caller *c, void *data) {
  struct kvm_msi *m = data;
  *m = (struct kvm_msi){.address_lo = 0xfee00000 | (u32)choose_below(&c->source, 0x10000),
                        .data = (u32)choose_below(&c->source, 0x10000)};
}

/* SIGUSR1 takes vCPUs out of KVM_RUN: it stays open. */
static void fill_mask(struct caller *c, void *data) {
  struct kvm_signal_mask *m = data;
  u64 set = choose(&c->source) & ~(1ull << 9);
  m->len = choose_below(&c->source, 8) ? 8 : (u32)choose_odd(&c->source);
  memcpy(m->sigset, &set, sizeof(set));
}

static void fill_small(struct caller *c, void *data) {
  u32 v = (u32)choose_below(&c->source, 10);
  memcpy(data, &v, sizeof(v));
}

static void fill_attr(struct caller *c, void *data) {
  struct kvm_device_attr *a = data;
  *a = (struct kvm_device_attr){
      .group = (u32)choose_below(&c->source, 3), .attr = choose_below(&c->source, 3), .addr = pointer(c)};
}

static void fill_debug(struct caller *c, void *data) {
  struct kvm_guest_debug *d = data;
  *d = (struct kvm_guest_debug){.control = (u32)choose_below(&c->source, 4) | (u32)choose_below(&c->source, 64) << 16};
  for (unsigned k = 0; k < 8; k++) d->arch.debugreg[k] = k < 4 ? gpa(&c->source) : choose(&c->source) & 0xffffffff;
}

static void fill_irqchip(struct caller *c, void *data) {
  ((struct kvm_irqchip *)data)->chip_id = (u32)choose_below(&c->source, 4);
}

/* A row may be tried with several; `own`: only in the thread's own memory, which nobody changes under the library's eyes. */
static const struct fill {
  u32 request;
  void (*fill)(struct caller *c, void *data);
  bool own;
} fills[] = {
    {KVM_SET_USER_MEMORY_REGION, fill_region, true},
    {KVM_SET_SIGNAL_MASK, fill_mask, true},
    {KVM_GET_DIRTY_LOG, fill_log, true},
    {KVM_CLEAR_DIRTY_LOG, fill_clear, true},
    {KVM_IRQFD, fill_irqfd, false},
    {KVM_IOEVENTFD, fill_ioeventfd, false},
    {KVM_REGISTER_COALESCED_MMIO, fill_coalesced, false},
    {KVM_UNREGISTER_COALESCED_MMIO, fill_coalesced, false},
    {KVM_ENABLE_CAP, fill_cap, false},
    {KVM_GET_MSRS, fill_msrs, false},
    {KVM_SET_MSRS, fill_msrs, false},
    {KVM_SET_CPUID2, fill_cpuid, false},
    {KVM_X86_SET_MSR_FILTER, fill_msr_filter, true},
    {KVM_SET_PMU_EVENT_FILTER, fill_pmu_filter, false},
    {KVM_SET_GSI_ROUTING, fill_routing, false},
    {KVM_IRQ_LINE, fill_line, false},
    {KVM_IRQ_LINE_STATUS, fill_line, false},
    {KVM_SIGNAL_MSI, fill_msi, false},
    {KVM_SET_MP_STATE, fill_small, false},
    {KVM_INTERRUPT, fill_small, false},
    {KVM_CREATE_DEVICE, fill_small, false},
    {KVM_GET_DEVICE_ATTR, fill_attr, true},
    {KVM_SET_DEVICE_ATTR, fill_attr, true},
    {KVM_HAS_DEVICE_ATTR, fill_attr, true},
    {KVM_SET_GUEST_DEBUG, fill_debug, false},
    {KVM_GET_IRQCHIP, fill_irqchip, false},
};

static const struct fill *fill_of(const struct ioctl_row *row) {
  for (unsigned k = 0; k < ARRAY_SIZE(fills); k++)
    if (fills[k].request == (u32)row->request) return &fills[k];
  return NULL;
}

/* ---- values ---- */

static u64 make_value(struct caller *c, const struct ioctl_row *row) {
  struct source *s = &c->source;
  static const u8 ceilings[] = {1, 2, 4, 8};
  if ((u32)row->request == KVM_RUN) return choose_below(s, 16) == 15;
  if ((u32)row->request == KVM_CHECK_EXTENSION && choose_below(s, 8)) return choose_below(s, CAPS);
  if (!choose_below(s, 16)) return choose_odd(s);
  if (!choose_below(s, 8)) return choose(s);
  return choose_below(s, ceilings[choose_below(s, ARRAY_SIZE(ceilings))]);
}

/* ---- the whole ---- */

/* A word that could be an address of the program's own becomes one of nobody's. */
static void tame_words(struct caller *c, void *data, size_t len) {
  for (size_t at = 0; at + 8 <= len; at += 8) {
    u64 v;
    memcpy(&v, (u8 *)data + at, 8);
    bool own = v - (u64)(uintptr_t)c->room < ARG_ROOM;
    if (v < 0x7fff0000 || v >> 47 || own || memory_contains(v, 0)) continue;
    v |= 1ull << 62;
    memcpy((u8 *)data + at, &v, 8);
  }
}

static void spoil(struct source *s, u8 *data, size_t len) {
  for (size_t rounds = choose_below(s, 4); rounds && len >= 8; rounds--) {
    u64 v = choose_below(s, 2) ? choose_odd(s) : choose(s);
    size_t width = (size_t)1 << choose_below(s, 4), at = choose_below(s, len / width) * width;
    if (choose_below(s, 2))
      data[at] ^= (u8)(1 << choose_below(s, 8));
    else
      memcpy(data + at, &v, width);
  }
}

static void fill(struct caller *c, int fd, const struct ioctl_row *row, u8 *data, size_t len) {
  struct source *s = &c->source;
  const struct fill *better = fill_of(row);
  const struct ioctl_row *get = twin(FD_VCPU, row);
  if (!get) get = twin(FD_VM, row);
  memset(data, 0, len);
  if (!choose_below(s, 12)) {
    choose_bytes(s, data, len < 256 ? len : 256);
  } else if (better) {
    better->fill(c, data);
  } else if (get) {
    if ((u32)get->request == KVM_GET_IRQCHIP) fill_irqchip(c, data);
    memcpy(c->room, data, len);
    uvirt_ioctl(fd, get->request, c->room);
    memcpy(data, c->room, len);
  }
  if (!better || !choose_below(s, 4)) spoil(s, data, len);
  tame_words(c, data, len);
  if ((u32)row->request == KVM_SET_USER_MEMORY_REGION) tame_region(data);
  if ((u32)row->request == KVM_SET_SIGNAL_MASK) data[5] &= (u8)~2; /* SIGUSR1, behind the length */
}

void *args_make(struct caller *c, int fd, const struct ioctl_row *row) {
  struct source *s = &c->source;
  const struct fill *better = fill_of(row);
  _Alignas(16) u8 data[ARG_ROOM];
  size_t size = row->arg == ARG_USER ? ARG_ROOM : _IOC_SIZE(row->request);
  if (row->arg == ARG_NONE || row->arg == ARG_VALUE) return (void *)(uintptr_t)make_value(c, row);
  fill(c, fd, row, data, size);
  /* Where it lies: its last byte is the last of the page; too close to the end; in memory that others change or that is nowhere.
   */
  u8 *to = c->room + ARG_ROOM - size;
  if (!choose_below(s, 16) && !(better && better->own)) to = (u8 *)(uintptr_t)pointer(c);
  if (!choose_below(s, 32)) to = c->room + ARG_ROOM - choose_below(s, size);
  size_t room = (size_t)(c->room + ARG_ROOM - to);
  memory_put(to, data, to >= c->room && room <= ARG_ROOM ? MIN(size, room) : size);
  return to;
}

/* ---- callers ---- */

bool caller_start(struct caller *c) {
  c->room = mmap(NULL, ARG_ROOM + 0x1000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return c->room != MAP_FAILED && !mprotect(c->room + ARG_ROOM, 0x1000, PROT_NONE);
}

void caller_end(struct caller *c) {
  munmap(c->room, ARG_ROOM + 0x1000);
}
