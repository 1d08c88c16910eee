/* Virtio over PCI: the vendor capabilities, the registers behind them, doorbells and MSI-X vectors.  Modern interface only.
 *
 * VIRTIO 1.2, section 4.1.
 */
#include "vmm/virtio/device.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>

#include <linux/pci_regs.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>

#include "vmm/vmm.h"

enum {
  VIRTIO_BAR = 0,
  MSIX_BAR = 1,
  COMMON_OFFSET = 0x0000, /* one page for each structure, so that a guest may map them apart */
  ISR_OFFSET = 0x1000,
  DEVICE_OFFSET = 0x2000,
  NOTIFY_OFFSET = 0x3000,
  REGION_SIZE = 0x1000,
  VIRTIO_BAR_SIZE = 0x4000,
  NOTIFY_MULTIPLIER = 4,
  VENDOR_REDHAT_VIRTIO = 0x1af4,
  DEVICE_ID_BASE = 0x1040, /* 4.1.2: PCI device ID of a modern device of type 0 */
  SUBSYSTEM = 0x1100,
};

static struct virtio_dev *virtio_of(struct pci_dev *pci) {
  return (struct virtio_dev *)pci;
}

/* ---- the common configuration structure (4.1.4.3); dev->lock is held ---- */

static struct virtio_queue *selected(struct virtio_dev *dev) {
  return dev->queue_select < dev->ops->queues ? &dev->queue[dev->queue_select] : NULL;
}

/* The selected queue while its fields may still change (they are fixed once it is enabled). */
static struct virtio_queue *settable(struct virtio_dev *dev) {
  struct virtio_queue *queue = selected(dev);
  return queue && !queue->enabled ? queue : NULL;
}

static uint32_t feature_word(uint64_t features, uint32_t select) {
  return select < 2 ? features >> (32 * select) : 0;
}

static uint32_t get_device_feature_select(struct virtio_dev *dev) {
  return dev->device_feature_select;
}
static void set_device_feature_select(struct virtio_dev *dev, uint32_t value) {
  dev->device_feature_select = value;
}
static uint32_t get_device_feature(struct virtio_dev *dev) {
  return feature_word(dev->offered, dev->device_feature_select);
}
static uint32_t get_driver_feature_select(struct virtio_dev *dev) {
  return dev->driver_feature_select;
}
static void set_driver_feature_select(struct virtio_dev *dev, uint32_t value) {
  dev->driver_feature_select = value;
}
static uint32_t get_driver_feature(struct virtio_dev *dev) {
  return feature_word(dev->acked, dev->driver_feature_select);
}

/* 3.1.1: features are settled with FEATURES_OK.  Bits that nobody offers are kept, so that FEATURES_OK is refused. */
static void set_driver_feature(struct virtio_dev *dev, uint32_t value) {
  if (dev->driver_feature_select > 1 || (dev->status & VIRTIO_CONFIG_S_FEATURES_OK)) return;
  unsigned shift = 32 * dev->driver_feature_select;
  dev->acked = (dev->acked & ~(0xffffffffull << shift)) | (uint64_t)value << shift;
}

/* 4.1.5.1.2: a vector that does not exist reads back as NO_VECTOR. */
static uint16_t checked_vector(const struct virtio_dev *dev, uint32_t value) {
  return value < dev->pci.msix.count ? value : VIRTIO_MSI_NO_VECTOR;
}

static uint32_t get_config_vector(struct virtio_dev *dev) {
  return dev->config_vector;
}
static void set_config_vector(struct virtio_dev *dev, uint32_t value) {
  dev->config_vector = checked_vector(dev, value);
}
static uint32_t get_num_queues(struct virtio_dev *dev) {
  return dev->ops->queues;
}
static uint32_t get_status(struct virtio_dev *dev) {
  return dev->status;
}
static void set_status(struct virtio_dev *dev, uint32_t value) {
  virtio_status_write(dev, value);
}
static uint32_t get_generation(struct virtio_dev *dev) {
  return dev->generation;
}
static uint32_t get_queue_select(struct virtio_dev *dev) {
  return dev->queue_select;
}
static void set_queue_select(struct virtio_dev *dev, uint32_t value) {
  dev->queue_select = value;
}

/* Size 0 says that the queue does not exist. */
static uint32_t get_queue_size(struct virtio_dev *dev) {
  return selected(dev) ? selected(dev)->size : 0;
}

static void set_queue_size(struct virtio_dev *dev, uint32_t value) {
  struct virtio_queue *queue = settable(dev);
  if (queue && value && value <= queue->size_max && !(value & (value - 1))) queue->size = value;
}

static uint32_t get_queue_vector(struct virtio_dev *dev) {
  return selected(dev) ? selected(dev)->vector : VIRTIO_MSI_NO_VECTOR;
}

static void set_queue_vector(struct virtio_dev *dev, uint32_t value) {
  if (selected(dev)) selected(dev)->vector = checked_vector(dev, value);
}

static uint32_t get_queue_enable(struct virtio_dev *dev) {
  return selected(dev) ? selected(dev)->enabled : 0;
}

/* 4.1.4.3.2: drivers never write 0. */
static void set_queue_enable(struct virtio_dev *dev, uint32_t value) {
  if (value == 1 && settable(dev)) virtio_queue_enable(selected(dev));
}

static uint32_t get_queue_notify_off(struct virtio_dev *dev) {
  return selected(dev) ? selected(dev)->index : 0;
}

static uint32_t get_half(const uint64_t *value, unsigned shift) {
  return value ? *value >> shift : 0;
}

static void set_half(uint64_t *to, unsigned shift, uint32_t value) {
  if (to) *to = (*to & ~(0xffffffffull << shift)) | (uint64_t)value << shift;
}

#define QUEUE_ADDRESS(field)                                                                                                     \
  static uint64_t *field##_of(struct virtio_queue *queue) {                                                                      \
    return queue ? &queue->field : NULL;                                                                                         \
  }                                                                                                                              \
  static uint32_t get_##field##_lo(struct virtio_dev *dev) {                                                                     \
    return get_half(field##_of(selected(dev)), 0);                                                                               \
  }                                                                                                                              \
  static uint32_t get_##field##_hi(struct virtio_dev *dev) {                                                                     \
    return get_half(field##_of(selected(dev)), 32);                                                                              \
  }                                                                                                                              \
  static void set_##field##_lo(struct virtio_dev *dev, uint32_t value) {                                                         \
    set_half(field##_of(settable(dev)), 0, value);                                                                               \
  }                                                                                                                              \
  static void set_##field##_hi(struct virtio_dev *dev, uint32_t value) {                                                         \
    set_half(field##_of(settable(dev)), 32, value);                                                                              \
  }
QUEUE_ADDRESS(desc)
QUEUE_ADDRESS(avail)
QUEUE_ADDRESS(used)

struct common_field {
  uint8_t offset, len;
  uint32_t (*get)(struct virtio_dev *dev);
  void (*set)(struct virtio_dev *dev, uint32_t value); /* NULL: read-only */
};

static const struct common_field common_fields[] = {
    {VIRTIO_PCI_COMMON_DFSELECT, 4, get_device_feature_select, set_device_feature_select},
    {VIRTIO_PCI_COMMON_DF, 4, get_device_feature, NULL},
    {VIRTIO_PCI_COMMON_GFSELECT, 4, get_driver_feature_select, set_driver_feature_select},
    {VIRTIO_PCI_COMMON_GF, 4, get_driver_feature, set_driver_feature},
    {VIRTIO_PCI_COMMON_MSIX, 2, get_config_vector, set_config_vector},
    {VIRTIO_PCI_COMMON_NUMQ, 2, get_num_queues, NULL},
    {VIRTIO_PCI_COMMON_STATUS, 1, get_status, set_status},
    {VIRTIO_PCI_COMMON_CFGGENERATION, 1, get_generation, NULL},
    {VIRTIO_PCI_COMMON_Q_SELECT, 2, get_queue_select, set_queue_select},
    {VIRTIO_PCI_COMMON_Q_SIZE, 2, get_queue_size, set_queue_size},
    {VIRTIO_PCI_COMMON_Q_MSIX, 2, get_queue_vector, set_queue_vector},
    {VIRTIO_PCI_COMMON_Q_ENABLE, 2, get_queue_enable, set_queue_enable},
    {VIRTIO_PCI_COMMON_Q_NOFF, 2, get_queue_notify_off, NULL},
    {VIRTIO_PCI_COMMON_Q_DESCLO, 4, get_desc_lo, set_desc_lo},
    {VIRTIO_PCI_COMMON_Q_DESCHI, 4, get_desc_hi, set_desc_hi},
    {VIRTIO_PCI_COMMON_Q_AVAILLO, 4, get_avail_lo, set_avail_lo},
    {VIRTIO_PCI_COMMON_Q_AVAILHI, 4, get_avail_hi, set_avail_hi},
    {VIRTIO_PCI_COMMON_Q_USEDLO, 4, get_used_lo, set_used_lo},
    {VIRTIO_PCI_COMMON_Q_USEDHI, 4, get_used_hi, set_used_hi},
};

static const struct common_field *find_field(uint64_t offset, unsigned len) {
  for (unsigned i = 0; i < sizeof common_fields / sizeof common_fields[0]; i++)
    if (common_fields[i].offset == offset && common_fields[i].len == len) return &common_fields[i];
  return NULL;
}

/* 4.1.3.1: fields are accessed whole, 64-bit ones as two halves; other reads give 0. */
static void common_read(struct virtio_dev *dev, uint64_t offset, void *data, unsigned len) {
  const struct common_field *field = find_field(offset, len);
  uint32_t value = field ? field->get(dev) : 0;
  memcpy(data, &value, len > 4 ? 4 : len);
}

static void common_write(struct virtio_dev *dev, uint64_t offset, void *data, unsigned len) {
  const struct common_field *field = find_field(offset, len);
  uint32_t value = 0;
  memcpy(&value, data, len > 4 ? 4 : len);
  if (field && field->set) field->set(dev, value);
}

/* ---- the other structures ---- */

/* 4.1.4.5: reading clears, and takes the interrupt back. */
static void isr_read(struct virtio_dev *dev, uint64_t offset, void *data, unsigned len) {
  if (offset) return;
  *(uint8_t *)data = dev->isr;
  dev->isr = 0;
  pci_intx_set(&dev->pci, false);
}

static void device_read(struct virtio_dev *dev, uint64_t offset, void *data, unsigned len) {
  for (unsigned i = 0; i < len; i++) ((uint8_t *)data)[i] = offset + i < dev->config_len ? dev->config[offset + i] : 0;
}

/* Only where no doorbell is tied to the address, and through the configuration access capability. */
static void notify_write(struct virtio_dev *dev, uint64_t offset, void *data, unsigned len) {
  uint64_t index = offset / NOTIFY_MULTIPLIER;
  if (index < dev->ops->queues) virtio_kick_self(&dev->queue[index]);
}

typedef void region_fn(struct virtio_dev *dev, uint64_t offset, void *data, unsigned len);

/* The device types here have no writable configuration. */
static const struct region {
  region_fn *read, *write;
} regions[] = {
    [COMMON_OFFSET / REGION_SIZE] = {common_read, common_write},
    [ISR_OFFSET / REGION_SIZE] = {isr_read, NULL},
    [DEVICE_OFFSET / REGION_SIZE] = {device_read, NULL},
    [NOTIFY_OFFSET / REGION_SIZE] = {NULL, notify_write},
};

static void region_access(struct pci_dev *pci, uint64_t offset, void *data, unsigned len, bool write) {
  struct virtio_dev *dev = virtio_of(pci);
  const struct region *region = &regions[offset / REGION_SIZE];
  region_fn *fn = write ? region->write : region->read;
  uint64_t at = offset % REGION_SIZE;
  if (!fn) return;
  pthread_mutex_lock(&dev->lock);
  /* A qword access to the common structure is one to each half. */
  if (len == 8 && offset < REGION_SIZE) {
    fn(dev, at, data, 4);
    fn(dev, at + 4, (uint8_t *)data + 4, 4);
  } else {
    fn(dev, at, data, len);
  }
  pthread_mutex_unlock(&dev->lock);
}

static void bar_read(struct pci_dev *pci, unsigned bar, uint64_t offset, void *data, unsigned len) {
  if (bar == VIRTIO_BAR) region_access(pci, offset, data, len, false);
}

static void bar_write(struct pci_dev *pci, unsigned bar, uint64_t offset, const void *data, unsigned len) {
  uint8_t copy[8];
  memcpy(copy, data, len);
  if (bar == VIRTIO_BAR) region_access(pci, offset, copy, len, true);
}

/* ---- doorbells ---- */

static uint64_t doorbell_address(uint64_t base, unsigned index) {
  return base + NOTIFY_OFFSET + index * NOTIFY_MULTIPLIER;
}

static void bar_mapped(struct pci_dev *pci, unsigned bar, uint64_t base) {
  struct virtio_dev *dev = virtio_of(pci);
  for (unsigned i = 0; bar == VIRTIO_BAR && i < dev->ops->queues; i++)
    dev->queue[i].doorbell = vmm_doorbell_add(dev->vmm, doorbell_address(base, i), false, dev->queue[i].kick) == 0;
}

static void bar_unmapped(struct pci_dev *pci, unsigned bar, uint64_t base) {
  struct virtio_dev *dev = virtio_of(pci);
  for (unsigned i = 0; bar == VIRTIO_BAR && i < dev->ops->queues; i++) {
    if (dev->queue[i].doorbell) vmm_doorbell_del(dev->vmm, doorbell_address(base, i), false, dev->queue[i].kick);
    dev->queue[i].doorbell = false;
  }
}

/* ---- the configuration access capability (4.1.4.9): a window to the BARs from config space ---- */

static void window_access(struct virtio_dev *dev, unsigned offset, unsigned len, bool write) {
  unsigned data = dev->window_cap + sizeof(struct virtio_pci_cap);
  if (!dev->window_cap || offset >= data + 4 || data >= offset + len) return;
  struct virtio_pci_cap cap;
  memcpy(&cap, dev->pci.config + dev->window_cap, sizeof cap);
  bool valid = (cap.length == 1 || cap.length == 2 || cap.length == 4) && cap.offset % cap.length == 0;
  if (valid) pci_bar_access(&dev->pci, cap.bar, cap.offset, dev->pci.config + data, cap.length, write);
}

static void config_read(struct pci_dev *pci, unsigned offset, unsigned len) {
  window_access(virtio_of(pci), offset, len, false);
}

static void config_write(struct pci_dev *pci, unsigned offset, unsigned len) {
  window_access(virtio_of(pci), offset, len, true);
}

/* ---- life ---- */

static void reset(struct pci_dev *pci) {
  struct virtio_dev *dev = virtio_of(pci);
  pthread_mutex_lock(&dev->lock);
  virtio_reset_locked(dev);
  pthread_mutex_unlock(&dev->lock);
}

static void destroy(struct pci_dev *pci) {
  struct virtio_dev *dev = virtio_of(pci);
  dev->ops->destroy(dev);
}

static const struct pci_dev_ops transport_ops = {
    .bar_read = bar_read,
    .bar_write = bar_write,
    .bar_mapped = bar_mapped,
    .bar_unmapped = bar_unmapped,
    .config_read = config_read,
    .config_write = config_write,
    .reset = reset,
    .destroy = destroy,
};

static unsigned add_cap(struct pci_dev *pci, uint8_t type, uint32_t offset, uint32_t length, uint8_t cap_len) {
  unsigned at = pci_cap_add(pci, PCI_CAP_ID_VNDR, cap_len);
  struct virtio_pci_cap cap;
  memcpy(&cap, pci->config + at, sizeof cap);
  cap.cap_len = cap_len;
  cap.cfg_type = type;
  cap.bar = VIRTIO_BAR;
  cap.offset = offset;
  cap.length = length;
  memcpy(pci->config + at, &cap, sizeof cap);
  return at;
}

static void add_caps(struct virtio_dev *dev) {
  struct pci_dev *pci = &dev->pci;
  const uint32_t multiplier = NOTIFY_MULTIPLIER;
  unsigned len = sizeof(struct virtio_pci_cap);
  add_cap(pci, VIRTIO_PCI_CAP_COMMON_CFG, COMMON_OFFSET, sizeof(struct virtio_pci_common_cfg), len);
  add_cap(pci, VIRTIO_PCI_CAP_ISR_CFG, ISR_OFFSET, 1, len);
  if (dev->config_len) add_cap(pci, VIRTIO_PCI_CAP_DEVICE_CFG, DEVICE_OFFSET, dev->config_len, len);
  unsigned at = add_cap(pci, VIRTIO_PCI_CAP_NOTIFY_CFG, NOTIFY_OFFSET, dev->ops->queues * NOTIFY_MULTIPLIER, len + 4);
  memcpy(pci->config + at + VIRTIO_PCI_NOTIFY_CAP_MULT, &multiplier, 4);
  at = add_cap(pci, VIRTIO_PCI_CAP_PCI_CFG, 0, 0, len + 4);
  pci->writable[at + offsetof(struct virtio_pci_cap, bar)] = 0xff;
  memset(pci->writable + at + offsetof(struct virtio_pci_cap, offset), 0xff, 12); /* offset, length, data */
  dev->window_cap = at;
}

int virtio_dev_add(struct virtio_dev *dev, struct pci_host *host) {
  const struct pci_id id = {
      .vendor = VENDOR_REDHAT_VIRTIO,
      .device = DEVICE_ID_BASE + dev->ops->id,
      .subsystem_vendor = VENDOR_REDHAT_VIRTIO,
      .subsystem = SUBSYSTEM,
      .class_code = dev->ops->class_code,
      .revision = 1, /* 4.1.2.1: at least 1 without the legacy interface */
      .intx = true,
  };
  pci_dev_init(&dev->pci, &transport_ops, &id);
  pci_bar_init(&dev->pci, VIRTIO_BAR, PCI_BAR_MEM32, VIRTIO_BAR_SIZE);
  int r = msix_init(&dev->pci, MSIX_BAR, dev->ops->queues + 1);
  if (r < 0) return r;
  add_caps(dev);
  return pci_dev_add(host, &dev->pci);
}
