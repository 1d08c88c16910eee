/* Descriptors and ioctls: life cycles, errors, capabilities, mappings, statistics, forked children, and any argument at all. */
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <poll.h>
#include <pthread.h>
#include "fake_arch.h"

static int check(int fd, long cap) { return call(fd, KVM_CHECK_EXTENSION, (void *)cap); }

static void system_descriptor(void **state) {
  assert_int_equal(uvirt_open("/dev/null", O_RDWR), -1);
  assert_int_equal(errno, ENOENT);
  assert_int_equal(uvirt_open(NULL, O_RDWR), -1);
  assert_int_equal(errno, EFAULT);
  int fd = uvirt_open("/dev/kvm", O_RDWR | O_CLOEXEC), plain = uvirt_open("/dev/kvm", O_RDONLY);
  assert_true(uvirt_is_ours(fd));
  assert_false(uvirt_is_ours(0));
  assert_false(uvirt_is_ours(-1));
  assert_false(uvirt_is_ours(1 << 30));
  assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
  assert_int_equal(fcntl(plain, F_GETFD), 0);
  assert_int_equal(call(fd, KVM_GET_API_VERSION, 0), 12);
  assert_int_equal(call(fd, KVM_GET_API_VERSION, (void *)1), -EINVAL);
  assert_int_equal(call(fd, KVM_GET_VCPU_MMAP_SIZE, 0), 12288);
  assert_int_equal(call(fd, KVM_GET_VCPU_MMAP_SIZE, (void *)1), -EINVAL);
  assert_int_equal(call(fd, KVM_CREATE_VM, (void *)99), -EINVAL);
  assert_int_equal(call(fd, __KVM_DEPRECATED_MAIN_0x07, 0), -EOPNOTSUPP);
  assert_int_equal(call(fd, 0x12345678, 0), -EINVAL);
  assert_int_equal(call(fd, KVM_RUN, 0), -EINVAL);
  assert_int_equal(call(0, KVM_GET_API_VERSION, 0), -EBADF);
  assert_int_equal(call(fd, (unsigned long)(int)KVM_CHECK_EXTENSION | 0xffffffff00000000ul, (void *)KVM_CAP_USER_MEMORY), 1);
  assert_ptr_equal(uvirt_mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0), MAP_FAILED);
  assert_int_equal(errno, ENODEV);
  assert_ptr_equal(uvirt_mmap(NULL, 4096, PROT_READ, MAP_SHARED, 0, 0), MAP_FAILED);
  assert_int_equal(errno, EBADF);
  assert_int_equal(uvirt_close(fd), 0);
  assert_int_equal(uvirt_close(fd), -1);
  assert_int_equal(errno, EBADF);
  assert_int_equal(fcntl(fd, F_GETFD), -1);
  assert_int_equal(uvirt_close(plain), 0);
  assert_int_equal(uvirt_close(0), -1);
  assert_string_equal(uvirt_version(), "0.1.0");
}

static void capabilities(void **state) {
  struct machine m;
  machine_up(&m, 1);
  assert_int_equal(check(m.kvm, KVM_CAP_MAX_VCPUS), 1024);
  assert_int_equal(check(m.kvm, KVM_CAP_MAX_VCPU_ID), 4096);
  assert_int_equal(check(m.kvm, KVM_CAP_IRQ_ROUTING), 4096);
  assert_int_equal(check(m.kvm, KVM_CAP_MULTI_ADDRESS_SPACE), 2);
  assert_true(check(m.kvm, KVM_CAP_NR_VCPUS) > 0);
  assert_int_equal(check(m.vm_fd, KVM_CAP_CHECK_EXTENSION_VM), 1);
  assert_int_equal(check(m.kvm, KVM_CAP_DIRTY_LOG_RING), 1048576);
  assert_int_equal(check(m.kvm, 100000), 0);
  assert_int_equal(check(m.kvm, -1), 0);
  assert_int_equal(check(m.kvm, FAKE_CAP), 7);
  assert_int_equal(check(m.vm_fd, FAKE_CAP), 8);
  struct kvm_enable_cap cap = {.cap = FAKE_CAP, .args = {21, 22}};
  assert_int_equal(call(m.vm_fd, KVM_ENABLE_CAP, &cap), 21);
  assert_int_equal(call(m.vcpu_fd[0], KVM_ENABLE_CAP, &cap), 22);
  cap.cap = 1;
  assert_int_equal(call(m.vm_fd, KVM_ENABLE_CAP, &cap), -EINVAL);
  assert_int_equal(call(m.vm_fd, KVM_ENABLE_CAP, NULL), -EFAULT);
  machine_down(&m);
}

static void rows(void **state) {
  struct machine m;
  u8 big[1000] = {[999] = 77};
  machine_up(&m, 1);
  int fd = m.vcpu_fd[0];
  unsigned long set = _IOC(_IOC_WRITE, KVMIO, 0xf0, 1000), get = _IOC(_IOC_READ, KVMIO, 0xf1, 1000);
  assert_int_equal(call(fd, set, big), 77);
  assert_int_equal(call(fd, set, (void *)16), -EFAULT);
  assert_int_equal(call(fd, get, big), 3);
  assert_int_equal(big[500], 0x5a);
  assert_int_equal(call(fd, get, (void *)16), -EFAULT);
  assert_int_equal(call(fd, 0xae99, 0), -EINVAL);
  assert_int_equal(call(m.vm_fd, 0xae99, 0), -ENOTTY);
  assert_int_equal(call(m.vm_fd, KVM_RESET_DIRTY_RINGS, 0), -EINVAL);
  struct kvm_create_device cd = {.type = KVM_DEV_TYPE_VFIO, .flags = KVM_CREATE_DEVICE_TEST};
  assert_int_equal(call(m.vm_fd, KVM_CREATE_DEVICE, &cd), -ENODEV);
  cd.type = 0xffffffff;
  assert_int_equal(call(m.vm_fd, KVM_CREATE_DEVICE, &cd), -ENODEV);
  machine_down(&m);
}

static void vcpus(void **state) {
  struct machine m;
  machine_up(&m, 2);
  assert_int_equal(call(m.vm_fd, KVM_CREATE_VCPU, (void *)0), -EEXIST);
  assert_int_equal(call(m.vm_fd, KVM_CREATE_VCPU, (void *)4096), -EINVAL);
  assert_int_equal(call(m.vm_fd, KVM_CREATE_VCPU, (void *)(1ul << 32)), -EINVAL);
  int fd = call(m.vm_fd, KVM_CREATE_VCPU, (void *)4095);
  assert_true(fd > 0);
  assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
  assert_int_equal(uvirt_close(fd), 0);
  assert_int_equal(call(m.vm_fd, KVM_CREATE_VCPU, (void *)4095), -EEXIST); /* a vCPU stays until its VM ends */
  assert_non_null(vm_vcpu_by_id(&m.vm->core, 4095));
  assert_null(vm_vcpu_by_id(&m.vm->core, 5));
  /* The VM lives as long as a vCPU's descriptor. */
  assert_int_equal(uvirt_close(m.vm_fd), 0);
  assert_int_equal(fake_vms_alive, 1);
  assert_int_equal(call(m.vcpu_fd[1], KVM_RUN, 0), 0);
  assert_int_equal(uvirt_close(m.vcpu_fd[0]), 0);
  assert_int_equal(uvirt_close(m.vcpu_fd[1]), 0);
  assert_int_equal(fake_vms_alive, 0);
  assert_int_equal(fake_vcpus_alive, 0);
  uvirt_close(m.kvm);
  for (unsigned i = 0; i < 2; i++) munmap(m.run[i], 3 * PAGE_SIZE);
  munmap(m.ram, m.ram_size);
}

/* All vCPUs a VM may have, with little more than one descriptor each. */
static void most_vcpus(void **state) {
  struct rlimit old, want = {1100, 1100};
  struct machine m;
  getrlimit(RLIMIT_NOFILE, &old);
  want.rlim_max = old.rlim_max;
  if (old.rlim_max < 1100) skip();
  setrlimit(RLIMIT_NOFILE, &want);
  machine_up(&m, 0);
  for (long i = 0; i < 1024; i++) assert_true(call(m.vm_fd, KVM_CREATE_VCPU, (void *)i) > 0);
  assert_int_equal(call(m.vm_fd, KVM_CREATE_VCPU, (void *)2000), -EINVAL);
  for (int fd = 3; fd < 1100; fd++)
    if (fd != m.kvm && fd != m.vm_fd && uvirt_is_ours(fd)) uvirt_close(fd);
  machine_down(&m);
  setrlimit(RLIMIT_NOFILE, &old);
}

static void no_descriptors(void **state) {
  struct machine m;
  struct rlimit old, few;
  machine_up(&m, 0);
  getrlimit(RLIMIT_NOFILE, &old);
  for (unsigned spare = 0; spare < 6; spare++) {
    int probe = dup(0);
    close(probe);
    few = (struct rlimit){(rlim_t)probe + spare, old.rlim_max};
    setrlimit(RLIMIT_NOFILE, &few);
    int vm = call(m.kvm, KVM_CREATE_VM, 0);
    int cpu = vm >= 0 ? call(vm, KVM_CREATE_VCPU, 0) : -EMFILE;
    int stats = cpu >= 0 ? call(cpu, KVM_GET_STATS_FD, 0) : -EMFILE;
    if (spare == 0) assert_int_equal(vm, -EMFILE);
    if (spare == 1) assert_int_equal(cpu, -EMFILE);
    if (stats < 0) assert_int_equal(stats, -EMFILE);
    if (stats >= 0) uvirt_close(stats);
    if (cpu >= 0) uvirt_close(cpu);
    if (vm >= 0) uvirt_close(vm);
    setrlimit(RLIMIT_NOFILE, &old);
    assert_int_equal(fake_vms_alive, 1);
  }
  machine_down(&m);
}

static void mappings(void **state) {
  struct machine m;
  machine_up(&m, 1);
  m.vcpu[0]->core.pio_data[0] = 9;
  m.vcpu[0]->core.run->exit_reason = 77;
  assert_int_equal(m.run[0]->exit_reason, 77);
  assert_int_equal(((u8 *)m.run[0])[PAGE_SIZE], 9);
  struct kvm_run *again = uvirt_mmap(NULL, 4096, PROT_READ, MAP_SHARED, m.vcpu_fd[0], 0);
  assert_int_equal(again->exit_reason, 77);
  munmap(again, 4096);
  m.vcpu[0]->core.coalesced->last = 3;
  struct kvm_coalesced_mmio_ring *ring = uvirt_mmap(NULL, 4096, PROT_READ, MAP_SHARED, m.vcpu_fd[0], 2 * 4096);
  assert_int_equal(ring->last, 3);
  munmap(ring, 4096);
  assert_ptr_equal(uvirt_mmap(NULL, 4096, PROT_READ, MAP_SHARED, m.vcpu_fd[0], 1), MAP_FAILED);
  assert_int_equal(errno, EINVAL);
  assert_ptr_equal(uvirt_mmap(NULL, 0, PROT_READ, MAP_SHARED, m.vcpu_fd[0], 0), MAP_FAILED);
  assert_ptr_equal(uvirt_mmap(NULL, 4096, PROT_READ, MAP_SHARED, m.vm_fd, 0), MAP_FAILED);
  assert_int_equal(ftruncate(m.vcpu_fd[0], 0), -1); /* sealed: our pages cannot be cut off */
  struct pollfd p = {.fd = m.vm_fd, .events = POLLIN};
  assert_true(poll(&p, 1, 0) >= 0);
  machine_down(&m);
}

/* ---- statistics ---- */

static void read_stats(int fd, const char *id, unsigned n_desc, const char *first, const char *name, u64 expected) {
  struct kvm_stats_header h;
  struct {
    struct kvm_stats_desc d;
    char name[48];
  } d;
  char text[48];
  assert_int_equal(read(fd, &h, sizeof(h)), sizeof(h));
  assert_int_equal(h.flags, 0);
  assert_int_equal(h.name_size, 48);
  assert_int_equal(h.num_desc, n_desc);
  assert_int_equal(h.id_offset, 24);
  assert_int_equal(h.desc_offset, 72);
  assert_int_equal(h.data_offset, 72 + n_desc * 64);
  assert_int_equal(read(fd, text, 48), 48); /* the position moved */
  assert_string_equal(text, id);
  u32 offset = 0;
  bool found = false;
  for (unsigned i = 0; i < n_desc; i++) {
    assert_int_equal(pread(fd, &d, sizeof(d), h.desc_offset + i * sizeof(d)), sizeof(d));
    if (!i) assert_string_equal(d.name, first);
    assert_int_equal(d.d.offset, offset); /* contiguous */
    assert_true((d.d.flags & KVM_STATS_TYPE_MASK) <= KVM_STATS_TYPE_LOG_HIST);
    offset += d.d.size * 8;
    if (strcmp(d.name, name)) continue;
    u64 v;
    assert_int_equal(pread(fd, &v, 8, h.data_offset + d.d.offset), 8);
    assert_int_equal(v, expected);
    found = true;
  }
  assert_true(found);
  char end[64];
  assert_int_equal(pread(fd, end, sizeof(end), h.data_offset + offset - 8), 8); /* short at the end */
  assert_int_equal(pread(fd, end, sizeof(end), h.data_offset + offset), 0);
}

static int hypercall_step(struct fake_vcpu *c) {
  vcpu_stat_inc(&c->core, hypercalls);
  return FAKE_EXIT;
}

/* 15 and 45 of KVM's, and the engine's own. */
static unsigned vm_stats, vcpu_stats;
static void count_stats(void) {
  vm_stats = vcpu_stats = 0;
#define COUNT_VM                        vm_stats++;
#define COUNT_VCPU                      vcpu_stats++;
#define STAT(owner, name, kind, values) COUNT_##owner
#include "core/stats.def"
#undef STAT
}

static void statistics(void **state) {
  struct machine m;
  char id[64];
  machine_up(&m, 1);
  count_stats();
  assert_true(vm_stats >= 15 && vcpu_stats >= 45);
  m.vcpu[0]->step = hypercall_step;
  call(m.vcpu_fd[0], KVM_RUN, 0);
  int vcpu = call(m.vcpu_fd[0], KVM_GET_STATS_FD, 0);
  assert_true(vcpu >= 0);
  snprintf(id, sizeof(id), "kvm-%d/vcpu-0", getpid());
  read_stats(vcpu, id, vcpu_stats, "halt_successful_poll", "hypercalls", 1);
  call(m.vcpu_fd[0], KVM_RUN, 0);
  int second = call(m.vcpu_fd[0], KVM_GET_STATS_FD, 0);
  read_stats(second, id, vcpu_stats, "halt_successful_poll", "hypercalls", 2); /* live, with a position of its own */
  int vm = call(m.vm_fd, KVM_GET_STATS_FD, 0);
  snprintf(id, sizeof(id), "kvm-%d", getpid());
  read_stats(vm, id, vm_stats, "remote_tlb_flush", "remote_tlb_flush", 1);
  assert_int_equal(write(vm, "x", 1), -1);
  assert_ptr_equal(uvirt_mmap(NULL, 4096, PROT_READ, MAP_SHARED, vm, 0), MAP_FAILED);
  assert_int_equal(call(vm, KVM_CHECK_EXTENSION, 0), -ENOTTY);
  assert_int_equal(uvirt_close(second), 0);
  /* They keep the VM. */
  machine_down_fds(&m);
  assert_int_equal(fake_vms_alive, 1);
  read_stats(vcpu, (snprintf(id, sizeof(id), "kvm-%d/vcpu-0", getpid()), lseek(vcpu, 0, SEEK_SET), id), vcpu_stats,
             "halt_successful_poll", "hypercalls", 2);
  assert_int_equal(uvirt_close(vcpu), 0);
  assert_int_equal(uvirt_close(vm), 0);
  assert_int_equal(fake_vms_alive, 0);
}

/* ---- processes ---- */

static int in_child(struct machine *m) {
  if (call(m->vm_fd, KVM_CREATE_VCPU, (void *)5) != -EIO) return 1;
  if (call(m->vcpu_fd[0], KVM_RUN, 0) != -EIO) return 2;
  if (call(m->kvm, KVM_GET_API_VERSION, 0) != 12) return 3;
  if (uvirt_close(m->vcpu_fd[0]) || uvirt_close(m->vm_fd)) return 4;
  struct machine own;
  machine_up(&own, 2); /* a child may have VMs of its own */
  if (call(own.vcpu_fd[1], KVM_RUN, 0)) return 5;
  machine_start(&own, 0, NULL, NULL);
  machine_stop(&own, 0);
  if (uvirt_close(own.vcpu_fd[0]) || uvirt_close(own.vcpu_fd[1]) || uvirt_close(own.vm_fd)) return 6;
  return 0;
}

static int spin(struct fake_vcpu *c) { return 0; }

static void forked_child(void **state) {
  SKIP_UNDER_TSAN(); /* it allows no threads in a forked child */
  struct machine m;
  int status;
  machine_up(&m, 1);
  machine_start(&m, 0, spin, NULL); /* the parent is busy meanwhile */
  machine_turns(&m, 0, 1);
  for (unsigned i = 0; i < 20; i++) {
    pid_t pid = fork();
    if (!pid) _exit(in_child(&m));
    waitpid(pid, &status, 0);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
  }
  assert_int_equal(machine_stop(&m, 0), -EINTR);
  machine_down(&m);
}

/* ---- anything at all ---- */

static void *close_and_open(void *arg) {
  _Atomic bool *stop = arg;
  while (!*stop) {
    int fd = uvirt_open("/dev/kvm", O_RDWR | O_CLOEXEC), vm = call(fd, KVM_CREATE_VM, 0);
    if (vm >= 0) uvirt_close(vm);
    if (fd >= 0) uvirt_close(fd);
  }
  return NULL;
}

/* Descriptors come and go while others are used by number. */
static void races_on_numbers(void **state) {
  _Atomic bool stop = false;
  pthread_t t[2];
  for (unsigned i = 0; i < 2; i++) pthread_create(&t[i], NULL, close_and_open, &stop);
  for (unsigned i = 0; i < 20000; i++) call(3 + (int)(i % 12), KVM_CHECK_EXTENSION, 0);
  stop = true;
  for (unsigned i = 0; i < 2; i++) pthread_join(t[i], NULL);
  assert_int_equal(fake_vms_alive, 0);
}

static void random_arguments(void **state) {
  static const unsigned long requests[] = {KVM_CHECK_EXTENSION,
                                           KVM_ENABLE_CAP,
                                           KVM_SET_USER_MEMORY_REGION,
                                           KVM_GET_DIRTY_LOG,
                                           KVM_CLEAR_DIRTY_LOG,
                                           KVM_RESET_DIRTY_RINGS,
                                           KVM_REGISTER_COALESCED_MMIO,
                                           KVM_UNREGISTER_COALESCED_MMIO,
                                           KVM_IRQFD,
                                           KVM_IOEVENTFD,
                                           KVM_SIGNAL_MSI,
                                           KVM_IRQ_LINE,
                                           KVM_IRQ_LINE_STATUS,
                                           KVM_SET_GSI_ROUTING,
                                           KVM_CREATE_DEVICE,
                                           KVM_SET_SIGNAL_MASK,
                                           KVM_RUN,
                                           KVM_SET_DEVICE_ATTR};
  struct machine m;
  machine_up(&m, 1);
  m.vm->irqchip = true;
  u8 *page = map_pages(2);
  munmap(page + PAGE_SIZE, PAGE_SIZE);
  srand(3);
  for (unsigned i = 0; i < 20000; i++) {
    int fds[] = {m.kvm, m.vm_fd, m.vcpu_fd[0]};
    unsigned long request = requests[(unsigned)rand() % ARRAY_SIZE(requests)];
    for (unsigned k = 0; k < 64; k++) page[PAGE_SIZE - 64 + k] = rand() % 3 ? 0 : (u8)rand();
    void *args[] = {page + PAGE_SIZE - 64, page + PAGE_SIZE - 64, page + PAGE_SIZE - 8, NULL,
                    (void *)~0ul,          (void *)(1ul << 63),   page + PAGE_SIZE};
    call(fds[(unsigned)rand() % 3], request, args[(unsigned)rand() % ARRAY_SIZE(args)]);
  }
  munmap(page, PAGE_SIZE);
  machine_down(&m);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(system_descriptor),
      cmocka_unit_test(capabilities),
      cmocka_unit_test(rows),
      cmocka_unit_test(vcpus),
      cmocka_unit_test(most_vcpus),
      cmocka_unit_test(no_descriptors),
      cmocka_unit_test(mappings),
      cmocka_unit_test(statistics),
      cmocka_unit_test(forked_child),
      cmocka_unit_test(races_on_numbers),
      cmocka_unit_test(random_arguments),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
