/* The fake architecture behind /dev/kvm of the core tests, and the machine they use. */
#include <sched.h>
#include "base/evloop.h"
#include "fake_arch.h"

_Atomic int fake_vms_alive, fake_vcpus_alive;

static int check_extension(struct vm *vm, long cap) { return cap == FAKE_CAP ? (vm ? 8 : 7) : 0; }

static int vm_enable_cap(struct vm *vm, u32 cap, u32 flags, const u64 *args) {
  return cap == FAKE_CAP && !flags ? (int)args[0] : -EINVAL;
}
static int vcpu_enable_cap(struct vcpu *vcpu, u32 cap, u32 flags, const u64 *args) {
  return cap == FAKE_CAP && !flags ? (int)args[1] : -EINVAL;
}

static int vm_create_fake(struct vm *vm, unsigned long type) {
  if (type) return -EINVAL;
  fake_vms_alive++;
  return 0;
}
static void vm_destroy_fake(struct vm *vm) { fake_vms_alive--; }
static int vcpu_create_fake(struct vcpu *vcpu) {
  fake_vcpus_alive++;
  return 0;
}
static void vcpu_destroy_fake(struct vcpu *vcpu) { fake_vcpus_alive--; }

static void handle_requests(struct fake_vcpu *c, u64 *taken) {
  *taken = atomic_exchange(&c->core.requests, 0);
  if (*taken & BIT(REQ_TLB_FLUSH)) c->flushes++;
  if (*taken) vcpu_requests_done(&c->core);
}

static int halt(struct fake_vcpu *c) {
  int r = 0;
  vcpu_leave(&c->core);
  while (!r && !c->runnable) {
    u64 taken = 0;
    r = vcpu_halt(&c->core);
    handle_requests(c, &taken);
    if (!r && (taken & BIT(REQ_EXIT))) r = -EINTR;
  }
  c->runnable = false;
  vcpu_enter(&c->core);
  return r;
}

static int loop(struct fake_vcpu *c) {
  for (;;) {
    u64 taken;
    handle_requests(c, &taken);
    if ((taken & BIT(REQ_RING_FULL)) && vcpu_ring_soft_full(&c->core)) {
      c->core.run->exit_reason = KVM_EXIT_DIRTY_RING_FULL;
      return 0;
    }
    if ((taken & BIT(REQ_EXIT)) || __atomic_load_n(&c->core.run->immediate_exit, __ATOMIC_RELAXED)) return -EINTR;
    int r = c->step ? c->step(c) : FAKE_EXIT;
    c->steps++;
    if (r == FAKE_HALT) r = halt(c);
    if (r == FAKE_EXIT) return 0;
    if (r < 0) return r;
  }
}

static int vcpu_run_fake(struct vcpu *vcpu) {
  struct fake_vcpu *c = fake_vcpu(vcpu);
  if (c->pending_io) c->completions++;
  c->pending_io = false;
  vcpu_enter(vcpu);
  int r = loop(c);
  vcpu_leave(vcpu);
  if (r == -EINTR) vcpu->run->exit_reason = KVM_EXIT_INTR;
  return r;
}

static int vcpu_complete_io_fake(struct vcpu *vcpu) {
  struct fake_vcpu *c = fake_vcpu(vcpu);
  if (c->pending_io) c->completions++;
  c->pending_io = false;
  return 0;
}

static bool vcpu_runnable_fake(struct vcpu *vcpu) { return fake_vcpu(vcpu)->runnable; }

static int slot_prepare(struct vm *vm, const struct memslot *old, struct memslot *new, enum slot_change change) {
  if (fake_vm(vm)->refuse_slots) return -ENOMEM;
  assert_true((old == NULL) == (change == SLOT_CREATE));
  assert_true((new == NULL) == (change == SLOT_DELETE));
  fake_vm(vm)->prepared++;
  return 0;
}

static void slot_commit(struct vm *vm, const struct memslot *old, const struct memslot *new, enum slot_change change) {
  fake_vm(vm)->committed++;
  fake_vm(vm)->last_change = change;
}

static int set_pin(struct irq_route_entry *e, struct vm *vm, int source, int level, bool line_status) {
  struct fake_vm *f = fake_vm(vm);
  f->last_source = source;
  f->line[e->chip.pin] = level;
  if (level)
    f->raises[e->chip.pin]++;
  else
    f->lowers[e->chip.pin]++;
  return e->chip.pin == 63 ? -1 : 1; /* pin 63 is masked */
}

static int set_msi(struct irq_route_entry *e, struct vm *vm, int source, int level, bool line_status) {
  if (!level) return -1;
  fake_vm(vm)->last_msi_data = e->msi.data;
  return 1;
}

static int route_set(struct vm *vm, struct irq_route_entry *e, const struct kvm_irq_routing_entry *ue) {
  switch (ue->type) {
  case KVM_IRQ_ROUTING_IRQCHIP:
    e->set = set_pin;
    return ue->u.irqchip.irqchip < 3 && ue->u.irqchip.pin < 64 ? 0 : -EINVAL;
  case KVM_IRQ_ROUTING_MSI:
    e->set = set_msi;
    return 0;
  default:
    return -EINVAL;
  }
}

static void routes_changed(struct vm *vm) { fake_vm(vm)->routes_changed++; }
static bool irqchip_present(struct vm *vm) { return fake_vm(vm)->irqchip; }
static bool irqfd_allowed(struct vm *vm, bool resample) { return fake_vm(vm)->irqchip; }

/* 1000 bytes: more than travels on the stack. */
struct big {
  u8 byte[1000];
};
#define FAKE_SET_BIG _IOW(KVMIO, 0xf0, struct big)
#define FAKE_GET_BIG _IOR(KVMIO, 0xf1, struct big)

static long set_big(struct ioctl_ctx *ctx, void *data) { return ((struct big *)data)->byte[999]; }
static long get_big(struct ioctl_ctx *ctx, void *data) {
  assert_int_equal(((struct big *)data)->byte[0], 0);
  memset(data, 0x5a, sizeof(struct big));
  return 3;
}

static const struct ioctl_row vcpu_rows[] = {
    {FAKE_SET_BIG, "FAKE_SET_BIG", ARG_IN, LOCK_VCPU, set_big},
    {FAKE_GET_BIG, "FAKE_GET_BIG", ARG_OUT, LOCK_VCPU | LOCK_VM, get_big},
};

const struct arch_ops x86_arch = {
    .name = "fake",
    .vm_size = sizeof(struct fake_vm),
    .vcpu_size = sizeof(struct fake_vcpu),
    .max_vcpus = 1024,
    .max_vcpu_id = 4096,
    .address_spaces = 2,
    .irq_pins = 64,
    .check_extension = check_extension,
    .vcpu_ioctls = vcpu_rows,
    .n_vcpu_ioctls = ARRAY_SIZE(vcpu_rows),
    .vm_enable_cap = vm_enable_cap,
    .vcpu_enable_cap = vcpu_enable_cap,
    .vm_create = vm_create_fake,
    .vm_destroy = vm_destroy_fake,
    .vcpu_create = vcpu_create_fake,
    .vcpu_destroy = vcpu_destroy_fake,
    .vcpu_run = vcpu_run_fake,
    .vcpu_complete_io = vcpu_complete_io_fake,
    .vcpu_runnable = vcpu_runnable_fake,
    .slot_prepare = slot_prepare,
    .slot_commit = slot_commit,
    .route_set = route_set,
    .routes_changed = routes_changed,
    .irqchip_present = irqchip_present,
    .irqfd_allowed = irqfd_allowed,
};

/* ---- the machine ---- */

int call(int fd, unsigned long request, void *arg) {
  int r = uvirt_ioctl(fd, request, arg);
  return r < 0 ? -errno : r;
}

int set_slot(int vm_fd, u32 slot, u32 flags, u64 gpa, u64 size, const void *host) {
  struct kvm_userspace_memory_region m = {
      .slot = slot, .flags = flags, .guest_phys_addr = gpa, .memory_size = size, .userspace_addr = (uintptr_t)host};
  return call(vm_fd, KVM_SET_USER_MEMORY_REGION, &m);
}

void *map_pages(size_t n) {
  void *p = mmap(NULL, n * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  assert_ptr_not_equal(p, MAP_FAILED);
  return p;
}

void machine_up(struct machine *m, unsigned n) {
  memset(m, 0, sizeof(*m));
  m->kvm = uvirt_open("/dev/kvm", O_RDWR | O_CLOEXEC);
  assert_true(m->kvm >= 0);
  m->vm_fd = call(m->kvm, KVM_CREATE_VM, 0);
  assert_true(m->vm_fd >= 0);
  struct fd_object *o = fd_get(m->vm_fd);
  m->vm = fake_vm(o->vm);
  fd_put(o);
  m->ram_size = 256 * PAGE_SIZE;
  m->ram = map_pages(256);
  assert_int_equal(set_slot(m->vm_fd, 0, 0, 0, m->ram_size, m->ram), 0);
  machine_add(m, n);
}

void machine_add(struct machine *m, unsigned n) {
  int size = call(m->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  m->n = n;
  for (unsigned i = 0; i < n; i++) {
    m->vcpu_fd[i] = call(m->vm_fd, KVM_CREATE_VCPU, (void *)(uintptr_t)i);
    assert_true(m->vcpu_fd[i] >= 0);
    m->vcpu[i] = fake_vcpu(vm_vcpu(&m->vm->core, i));
    m->run[i] = uvirt_mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, m->vcpu_fd[i], 0);
    assert_ptr_not_equal(m->run[i], MAP_FAILED);
  }
}

void machine_down_fds(struct machine *m) {
  for (unsigned i = 0; i < m->n; i++) {
    munmap(m->run[i], 3 * PAGE_SIZE);
    assert_int_equal(uvirt_close(m->vcpu_fd[i]), 0);
  }
  assert_int_equal(uvirt_close(m->vm_fd), 0);
  assert_int_equal(uvirt_close(m->kvm), 0);
  munmap(m->ram, m->ram_size);
}

void machine_down(struct machine *m) {
  machine_down_fds(m);
  assert_int_equal(fake_vms_alive, 0);
  assert_int_equal(fake_vcpus_alive, 0);
}

static void *run_thread(void *arg) { return (void *)(intptr_t)call((int)(intptr_t)arg, KVM_RUN, NULL); }

void machine_start(struct machine *m, unsigned i, fake_step *step, void *arg) {
  m->vcpu[i]->step = step;
  m->vcpu[i]->arg = arg;
  assert_int_equal(pthread_create(&m->thread[i], NULL, run_thread, (void *)(intptr_t)m->vcpu_fd[i]), 0);
}

int machine_stop(struct machine *m, unsigned i) {
  void *r;
  __atomic_store_n(&m->run[i]->immediate_exit, 1, __ATOMIC_RELAXED); /* also for a thread that has not come to KVM_RUN yet */
  vcpu_request(&m->vcpu[i]->core, REQ_EXIT);
  pthread_join(m->thread[i], &r);
  m->run[i]->immediate_exit = 0;
  return (int)(intptr_t)r;
}

bool again(unsigned done, unsigned n, u64 *end) {
  if (!done) *end = clock_now_ns() + 3000000000ull;
  return done < n && (done < 10 || clock_now_ns() < *end);
}

void machine_turns(struct machine *m, unsigned i, u64 n) {
  for (u64 until = m->vcpu[i]->steps + n; m->vcpu[i]->steps < until;) sched_yield();
}
