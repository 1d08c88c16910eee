/* The fakes behind fake.h: what core, base and the rest of the engine would do, in a few lines each. */
#include "fake.h"
#include <errno.h>
#include <stdlib.h>
#include "core/memslot.h"

struct fake fake;

static struct evtimer *timers[32];
static struct {
  enum io_bus_kind kind;
  u64 addr, len;
  struct io_device *dev;
} ranges[16];
static struct irq_route_entry routes[64];
static unsigned n_routes;
static struct irq_ack_notifier *notifiers;
static struct vcpu *vcpus[FAKE_VCPUS];

/* ---- base ---- */

u64 clock_now_ns(void) {
  return fake.now;
}

void evtimer_init(struct evtimer *t, struct evloop *loop, void (*fn)(struct evtimer *t)) {
  *t = (struct evtimer){.loop = loop, .fn = fn, .heap_index = -1};
}

void evtimer_arm(struct evtimer *t, u64 deadline_ns) {
  unsigned k = 0;
  fake.arms++;
  evtimer_cancel(t, false);
  while (timers[k]) k++;
  timers[k] = t;
  t->deadline_ns = deadline_ns;
}

void evtimer_cancel(struct evtimer *t, bool wait) {
  for (unsigned k = 0; k < ARRAY_SIZE(timers); k++)
    if (timers[k] == t) timers[k] = NULL;
}

static struct evtimer *first_due(u64 until) {
  struct evtimer *first = NULL;
  for (unsigned k = 0; k < ARRAY_SIZE(timers); k++)
    if (timers[k] && timers[k]->deadline_ns <= until && (!first || timers[k]->deadline_ns < first->deadline_ns))
      first = timers[k];
  return first;
}

void fake_sleep(u64 ns) {
  u64 until = fake.now + ns;
  struct evtimer *t;
  while ((t = first_due(until))) {
    if (t->deadline_ns > fake.now) fake.now = t->deadline_ns;
    evtimer_cancel(t, false);
    t->fn(t);
  }
  fake.now = until;
}

/* ---- core ---- */

/* Nothing sleeps here. */
void vcpu_wake_near(struct vcpu *vcpu, u64 ns) {}

void vcpu_request(struct vcpu *v, unsigned req) {
  atomic_fetch_or(&v->requests, BIT(req));
}

int io_bus_register(struct vm *vm, enum io_bus_kind kind, u64 addr, u64 len, struct io_device *dev) {
  for (unsigned k = 0; k < ARRAY_SIZE(ranges); k++) {
    if (ranges[k].dev) continue;
    ranges[k].kind = kind;
    ranges[k].addr = addr;
    ranges[k].len = len;
    ranges[k].dev = dev;
    return 0;
  }
  return -ENOSPC;
}

int io_bus_unregister(struct vm *vm, enum io_bus_kind kind, struct io_device *dev) {
  for (unsigned k = 0; k < ARRAY_SIZE(ranges); k++)
    if (ranges[k].dev == dev) ranges[k].dev = NULL;
  return 0;
}

static struct io_device *find(enum io_bus_kind kind, u64 addr) {
  for (unsigned k = 0; k < ARRAY_SIZE(ranges); k++)
    if (ranges[k].dev && ranges[k].kind == kind && addr >= ranges[k].addr && addr < ranges[k].addr + ranges[k].len)
      return ranges[k].dev;
  fail_msg("no device at %llx", (unsigned long long)addr);
  return NULL;
}

void fake_out(u16 port, u8 v) {
  find(BUS_PIO, port)->ops->write(find(BUS_PIO, port), NULL, port, 1, &v);
}

u8 fake_in(u16 port) {
  u8 v = 0;
  find(BUS_PIO, port)->ops->read(find(BUS_PIO, port), NULL, port, 1, &v);
  return v;
}

void fake_mmio_write(u64 addr, u32 v) {
  find(BUS_MMIO, addr)->ops->write(find(BUS_MMIO, addr), NULL, addr, 4, &v);
}

u32 fake_mmio_read(u64 addr) {
  u32 v = 0;
  find(BUS_MMIO, addr)->ops->read(find(BUS_MMIO, addr), NULL, addr, 4, &v);
  return v;
}

int vm_set_routing(struct vm *vm, const struct kvm_irq_routing_entry *entries, unsigned n, unsigned flags) {
  n_routes = 0;
  for (unsigned k = 0; k < n; k++) {
    struct irq_route_entry e = {.gsi = entries[k].gsi, .type = entries[k].type};
    int r = x86_route_set(vm, &e, &entries[k]);
    if (r) return r;
    routes[n_routes++] = e;
  }
  x86_routes_changed(vm);
  return 0;
}

void fake_route_msi(u32 gsi, u64 address, u32 data) {
  struct kvm_irq_routing_entry ue = {.gsi = gsi, .type = KVM_IRQ_ROUTING_MSI};
  struct irq_route_entry e = {.gsi = gsi, .type = KVM_IRQ_ROUTING_MSI};
  ue.u.msi.address_lo = (u32)address;
  ue.u.msi.address_hi = (u32)(address >> 32);
  ue.u.msi.data = data;
  assert_int_equal(x86_route_set(&fake.vm.core, &e, &ue), 0);
  routes[n_routes++] = e;
  x86_routes_changed(&fake.vm.core);
}

int vm_set_irq(struct vm *vm, int source, u32 gsi, int level, bool line_status) {
  int sum = -1;
  for (unsigned k = 0; k < n_routes; k++) {
    if (routes[k].gsi != gsi) continue;
    int r = routes[k].set(&routes[k], vm, source, level, line_status);
    if (r >= 0) sum = MAX(sum, 0) + r;
  }
  return sum;
}

int fake_line(u32 gsi, int level) {
  return vm_set_irq(&fake.vm.core, 0, gsi, level, true);
}

void vm_for_each_route(struct vm *vm, void (*fn)(const struct irq_route_entry *e, void *arg), void *arg) {
  for (unsigned k = 0; k < n_routes; k++) fn(&routes[k], arg);
}

static bool leads_to(u32 gsi, unsigned chip, unsigned pin) {
  for (unsigned k = 0; k < n_routes; k++)
    if (routes[k].gsi == gsi && routes[k].type == KVM_IRQ_ROUTING_IRQCHIP && routes[k].chip.irqchip == chip &&
        routes[k].chip.pin == pin)
      return true;
  return false;
}

void vm_notify_ack(struct vm *vm, unsigned chip, unsigned pin) {
  fake.acks[chip][pin]++;
  for (struct irq_ack_notifier *n = notifiers; n; n = n->next)
    if (leads_to(n->gsi, chip, pin)) n->acked(n);
}

bool vm_has_ack_notifier(struct vm *vm, unsigned chip, unsigned pin) {
  for (struct irq_ack_notifier *n = notifiers; n; n = n->next)
    if (leads_to(n->gsi, chip, pin)) return true;
  return false;
}

void vm_register_ack_notifier(struct vm *vm, struct irq_ack_notifier *n) {
  n->next = notifiers;
  notifiers = n;
}

void vm_unregister_ack_notifier(struct vm *vm, struct irq_ack_notifier *n) {
  for (struct irq_ack_notifier **at = &notifiers; *at; at = &(*at)->next)
    if (*at == n) {
      *at = n->next;
      return;
    }
}

int vm_read_gpa(struct vm *vm, gpa_t gpa, void *data, size_t len) {
  if (gpa + len > sizeof(fake.memory)) return -EFAULT;
  memcpy(data, fake.memory + gpa, len);
  return 0;
}

int vcpu_write_gpa(struct vcpu *vcpu, gpa_t gpa, const void *data, size_t len) {
  if (gpa + len > sizeof(fake.memory)) return -EFAULT;
  memcpy(fake.memory + gpa, data, len);
  return 0;
}

/* ---- the rest of the engine ---- */

bool x86_has(const struct x86_vcpu *c, enum x86_feature f) {
  return (f == X86_FEATURE_X2APIC && fake.x2apic) || (f == X86_FEATURE_TSC_DEADLINE && fake.deadline);
}
bool x86_is_amd(const struct x86_vcpu *c) {
  return fake.amd;
}
unsigned x86_maxphyaddr(const struct x86_vcpu *c) {
  return 46;
}
void x86_cpuid_apic_changed(struct x86_vcpu *c) {}
int x86_msr_get_host(struct x86_vcpu *c, u32 index, u64 *value) {
  *value = fake.mcg_cap;
  return 0;
}
u64 x86_guest_tsc(struct x86_vcpu *c) {
  return fake.now * 2;
}
u64 x86_tsc_deadline_to_ns(struct x86_vcpu *c, u64 tsc) {
  return tsc / 2 > fake.now ? tsc / 2 : 0;
}

/* ---- life ---- */

static void add_vcpu(unsigned k, u32 id) {
  struct x86_vcpu *c = aligned_alloc(64, ALIGN_UP(sizeof(*c), (size_t)64));
  memset(c, 0, sizeof(*c));
  c->core.run = calloc(1, sizeof(struct kvm_run));
  c->core.vm = &fake.vm.core;
  c->core.id = id;
  c->core.index = k;
  fake.vcpu[k] = c;
  vcpus[k] = &c->core;
  assert_int_equal(x86_lapic_create(c), 0);
  atomic_store(&fake.vm.core.n_vcpus, k + 1);
  x86_lapic_reset(c, false);
}

void fake_start(char kind, unsigned n, u32 first_id) {
  memset(&fake, 0, sizeof(fake));
  memset(ranges, 0, sizeof(ranges));
  memset(timers, 0, sizeof(timers));
  n_routes = 0;
  notifiers = NULL;
  fake.now = 1000000000;
  fake.x2apic = fake.deadline = true;
  fake.vm.core.vcpus = vcpus;
  fake.vm.core.bus[BUS_PIO] = fake.vm.core.bus[BUS_MMIO] = (struct io_bus *)&fake;
  if (kind == 'k') assert_int_equal(x86_irqchip_create(&fake.vm), 0);
  if (kind == 's') assert_int_equal(x86_irqchip_create_split(&fake.vm, 24), 0);
  fake.n = n;
  for (unsigned k = 0; k < n; k++) add_vcpu(k, first_id + k);
}

void fake_stop(void) {
  for (unsigned k = 0; k < fake.n; k++) {
    x86_lapic_destroy(fake.vcpu[k]);
    free(fake.vcpu[k]->core.run);
    free(fake.vcpu[k]);
  }
  x86_pit_destroy(&fake.vm);
  x86_irqchip_destroy(&fake.vm);
}

bool fake_event(unsigned k) {
  return atomic_fetch_and(&fake.vcpu[k]->core.requests, ~BIT(REQ_EVENT)) & BIT(REQ_EVENT);
}

u32 apic_read(unsigned k, unsigned reg) {
  u32 v = 0;
  assert_int_equal(x86_lapic_mmio_read(fake.vcpu[k], APIC_BASE_ADDR + reg * 16, 4, &v), 0);
  return v;
}

void apic_write(unsigned k, unsigned reg, u32 v) {
  assert_int_equal(x86_lapic_mmio_write(fake.vcpu[k], APIC_BASE_ADDR + reg * 16, 4, &v), 0);
}

void apic_enable(unsigned k) {
  apic_write(k, REG_SVR, 0x1ff);
}

void apic_x2(unsigned k) {
  struct x86_vcpu *c = fake.vcpu[k];
  assert_int_equal(x86_apic_base_write(c, c->apic_base | APIC_BASE_X2, false), 0);
}
