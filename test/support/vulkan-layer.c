/*
 * A Vulkan layer for tests: it reports another vendor id for the device below it. ONNX Runtime's WebGPU kernels choose
 * their paths by the vendor, so that a software device can take those of an NVIDIA GPU.
 *
 *   TEST_VULKAN_VENDOR=0x10de   the vendor id to report; without the variable nothing is changed
 *
 * The layer is one shared object without any C library at link time: only getenv and strcmp are taken from the process
 * that loads it, so a compiler and the Vulkan headers are all that building needs:
 *   gcc -shared -fPIC -O1 -ffreestanding -nostdlib -o libtest_vendor.so vulkan-layer.c
 * How layers chain: https://github.com/KhronosGroup/Vulkan-Loader/blob/main/docs/LoaderLayerInterface.md
 */
#include <vulkan/vk_layer.h>
#include <vulkan/vulkan_core.h>

char *getenv(const char *name);
int strcmp(const char *a, const char *b);

/* One instance at a time is enough for tests: the functions of the next layer, or of the driver. */
static PFN_vkGetInstanceProcAddr next_instance_function;
static PFN_vkGetDeviceProcAddr next_device_function;
static PFN_vkGetPhysicalDeviceProperties next_properties;
static PFN_vkGetPhysicalDeviceProperties2 next_properties2;
static VkInstance current_instance;

/* Reads a hexadecimal number with its 0x; 0 for anything else. */
static uint32_t vendor_of_environment(void) {
  const char *text = getenv("TEST_VULKAN_VENDOR");
  uint32_t value = 0;
  if (!text || text[0] != '0' || text[1] != 'x') return 0;
  for (text += 2; *text; text++) {
    char c = *text;
    uint32_t digit = c >= '0' && c <= '9' ? (uint32_t)(c - '0') : c >= 'a' && c <= 'f' ? (uint32_t)(c - 'a' + 10) : 16;
    if (digit > 15) return 0;
    value = value * 16 + digit;
  }
  return value;
}

static void report_vendor(VkPhysicalDeviceProperties *properties) {
  uint32_t vendor = vendor_of_environment();
  if (vendor) properties->vendorID = vendor;
}

static VKAPI_ATTR void VKAPI_CALL get_properties(VkPhysicalDevice device, VkPhysicalDeviceProperties *out) {
  next_properties(device, out);
  report_vendor(out);
}

static VKAPI_ATTR void VKAPI_CALL get_properties2(VkPhysicalDevice device, VkPhysicalDeviceProperties2 *out) {
  next_properties2(device, out);
  report_vendor(&out->properties);
}

/* The loader hands the chain of layers over in pNext. Each layer takes its link and passes the rest on. */
static VKAPI_ATTR VkResult VKAPI_CALL create_instance(const VkInstanceCreateInfo *info,
                                                      const VkAllocationCallbacks *allocation, VkInstance *out) {
  VkLayerInstanceCreateInfo *link = (VkLayerInstanceCreateInfo *)info->pNext;
  while (link && (link->sType != VK_STRUCTURE_TYPE_LOADER_INSTANCE_CREATE_INFO || link->function != VK_LAYER_LINK_INFO))
    link = (VkLayerInstanceCreateInfo *)link->pNext;
  if (!link) return VK_ERROR_INITIALIZATION_FAILED;
  next_instance_function = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
  link->u.pLayerInfo = link->u.pLayerInfo->pNext;

  PFN_vkCreateInstance create = (PFN_vkCreateInstance)next_instance_function(VK_NULL_HANDLE, "vkCreateInstance");
  VkResult result = create(info, allocation, out);
  if (result != VK_SUCCESS) return result;
  current_instance = *out;
  next_properties =
      (PFN_vkGetPhysicalDeviceProperties)next_instance_function(*out, "vkGetPhysicalDeviceProperties");
  next_properties2 =
      (PFN_vkGetPhysicalDeviceProperties2)next_instance_function(*out, "vkGetPhysicalDeviceProperties2");
  return VK_SUCCESS;
}

static VKAPI_ATTR VkResult VKAPI_CALL create_device(VkPhysicalDevice device, const VkDeviceCreateInfo *info,
                                                    const VkAllocationCallbacks *allocation, VkDevice *out) {
  VkLayerDeviceCreateInfo *link = (VkLayerDeviceCreateInfo *)info->pNext;
  while (link && (link->sType != VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO || link->function != VK_LAYER_LINK_INFO))
    link = (VkLayerDeviceCreateInfo *)link->pNext;
  if (!link) return VK_ERROR_INITIALIZATION_FAILED;
  PFN_vkGetInstanceProcAddr next = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
  next_device_function = link->u.pLayerInfo->pfnNextGetDeviceProcAddr;
  link->u.pLayerInfo = link->u.pLayerInfo->pNext;
  return ((PFN_vkCreateDevice)next(current_instance, "vkCreateDevice"))(device, info, allocation, out);
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL device_function(VkDevice device, const char *name) {
  return next_device_function(device, name);
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL instance_function(VkInstance instance, const char *name) {
  if (!strcmp(name, "vkGetInstanceProcAddr")) return (PFN_vkVoidFunction)instance_function;
  if (!strcmp(name, "vkGetDeviceProcAddr")) return (PFN_vkVoidFunction)device_function;
  if (!strcmp(name, "vkCreateInstance")) return (PFN_vkVoidFunction)create_instance;
  if (!strcmp(name, "vkCreateDevice")) return (PFN_vkVoidFunction)create_device;
  if (!strcmp(name, "vkGetPhysicalDeviceProperties")) return (PFN_vkVoidFunction)get_properties;
  if (!strcmp(name, "vkGetPhysicalDeviceProperties2")) return (PFN_vkVoidFunction)get_properties2;
  if (!strcmp(name, "vkGetPhysicalDeviceProperties2KHR")) return (PFN_vkVoidFunction)get_properties2;
  return next_instance_function ? next_instance_function(instance, name) : 0;
}

__attribute__((visibility("default"))) VKAPI_ATTR VkResult VKAPI_CALL
vkNegotiateLoaderLayerInterfaceVersion(VkNegotiateLayerInterface *negotiated) {
  negotiated->loaderLayerInterfaceVersion = 2;
  negotiated->pfnGetInstanceProcAddr = instance_function;
  negotiated->pfnGetDeviceProcAddr = device_function;
  negotiated->pfnGetPhysicalDeviceProcAddr = 0;
  return VK_SUCCESS;
}
