/** Which device the settings mean: one that is named, or what `auto` finds. */
import { expect, test, vi } from 'vitest';
import { type DeviceConfig, loadOnDevice } from '../../services/lib/engine/choose-device.ts';
import type { DeviceSetting } from '../../services/lib/engine/device.ts';
import type { VulkanDevice } from '../../services/lib/engine/vulkan.ts';
import { ServingError } from '../../services/lib/process/errors.ts';

const AUTO: DeviceConfig = { provider: 'auto', providerLibrary: '', deviceId: 0 };

/** Devices of which those in `refused` cannot be loaded on. */
function machine(gpus: number, refused: Record<string, string> = {}, vulkan: readonly VulkanDevice[] = []) {
  const tried: DeviceSetting[] = [];
  const warn = vi.fn();
  const load = async (setting: DeviceSetting) => {
    tried.push(setting);
    const reason = refused[setting.provider];
    if (reason) throw new ServingError('provider_unavailable', reason);
    return setting.provider;
  };
  const choose = (config: Partial<DeviceConfig>) =>
    loadOnDevice(
      { ...AUTO, ...config },
      { warn },
      load,
      () => new Array<string>(gpus).fill('a vendor'),
      () => vulkan,
    );
  return { tried, warn, choose };
}

test('auto takes the CPU where the system lists no GPU, and tries nothing else', async () => {
  const { choose, tried } = machine(0);
  expect(await choose({})).toEqual({ loaded: 'cpu', reason: 'auto: the system lists no GPU' });
  expect(tried).toEqual([{ provider: 'cpu' }]);
});

test('auto leaves WebGPU out where Vulkan lists nothing but software devices, and names them', async () => {
  const llvmpipe = { name: 'llvmpipe (LLVM 19)', software: true };
  const alone = machine(1, { cuda: 'no library' }, [llvmpipe]);
  expect(await alone.choose({})).toEqual({
    loaded: 'cpu',
    reason:
      "auto: webgpu would take no GPU: Vulkan lists llvmpipe (LLVM 19) (software) only, so install the GPU's driver; cuda was refused: no library",
  });
  expect(alone.tried.map(({ provider }) => provider)).toEqual(['cuda', 'cpu']);
  const beside = machine(1, { cuda: 'no library' }, [llvmpipe, { name: 'NVIDIA H200', software: false }]);
  expect((await beside.choose({})).loaded).toBe('webgpu');
});

test('auto takes a GPU that is listed and passes, CUDA first', async () => {
  expect(await machine(1).choose({})).toEqual({ loaded: 'cuda', reason: 'auto: it passes its check' });
});

test('auto goes on to the next provider, and says why it did not take the one before', async () => {
  const { choose, warn } = machine(1, { cuda: 'libcudnn.so.9 is missing' });
  expect(await choose({})).toEqual({
    loaded: 'webgpu',
    reason: 'auto: it passes its check; cuda was refused: libcudnn.so.9 is missing',
  });
  expect(warn).toHaveBeenCalledTimes(1);
});

test('auto takes the CPU where no provider passes, with all reasons', async () => {
  const { choose, warn } = machine(1, { cuda: 'no library', webgpu: 'KL 4.7e-3' });
  expect(await choose({})).toEqual({
    loaded: 'cpu',
    reason: 'auto: cuda was refused: no library; webgpu was refused: KL 4.7e-3',
  });
  expect(warn).toHaveBeenCalledTimes(2);
});

test.each(['cpu', 'webgpu', 'cuda'] as const)(
  '%s that is named is tried alone, and its failure is the answer',
  async (provider) => {
    const { choose, tried } = machine(1, { [provider]: 'it is broken' });
    await expect(choose({ provider })).rejects.toMatchObject({ message: 'it is broken' });
    expect(tried.map((setting) => setting.provider)).toEqual([provider]);
  },
);

test('the number of the device goes to the device', async () => {
  const { choose, tried } = machine(0);
  await choose({ provider: 'cuda', deviceId: 2 });
  expect(tried).toEqual([{ provider: 'cuda', deviceId: 2 }]);
});

test('the library of a provider is taken in place of the built-in ones, without a GPU that the system lists', async () => {
  const { choose, tried } = machine(0);
  expect(await choose({ providerLibrary: '/opt/ep.so', deviceId: 1 })).toEqual({
    loaded: 'plugin',
    reason: '--provider-library',
  });
  expect(tried).toEqual([{ provider: 'plugin', providerLibrary: '/opt/ep.so', deviceId: 1 }]);
});

test('a library and a provider contradict each other', async () => {
  const { choose, tried } = machine(1);
  await expect(choose({ provider: 'webgpu', providerLibrary: '/opt/ep.so' })).rejects.toMatchObject({
    code: 'config_invalid',
    message: expect.stringContaining('--provider webgpu and --provider-library /opt/ep.so'),
  });
  expect(tried).toEqual([]);
});

test.each([
  [{ provider: 'webgpu', deviceId: 1 }, /--device-id 1 cannot be chosen with --provider webgpu.*VK_DRIVER_FILES/],
  [{ provider: 'cpu', deviceId: 1 }, /--device-id 1 has no effect with --provider cpu: leave it out/],
  [{ provider: 'cpu', deviceMemory: 2 ** 30 }, /--device-memory 1073741824 has no effect with --provider cpu/],
] as const)('%o is refused, because a setting would be ignored', async (config, message) => {
  const { choose, tried } = machine(1);
  await expect(choose(config)).rejects.toMatchObject({
    code: 'config_invalid',
    message: expect.stringMatching(message),
  });
  expect(tried).toEqual([]);
});

test('auto with a number of a device does not take the GPU of WebGPU, which cannot be chosen', async () => {
  const { choose, tried } = machine(2, { cuda: 'no library' });
  expect(await choose({ deviceId: 1, deviceMemory: 2 ** 30 })).toEqual({
    loaded: 'cpu',
    reason:
      'auto: webgpu cannot take --device-id 1; cuda was refused: no library; --device-id 1 has no effect; --device-memory 1073741824 has no effect',
  });
  expect(tried.map((setting) => setting.provider)).toEqual(['cuda', 'cpu']);
});

test('auto takes the CPU where the GPUs of the system cannot be listed', async () => {
  const warn = vi.fn();
  const gpus = () => {
    throw new ServingError('runtime_failed', 'no sysfs');
  };
  const load = async ({ provider }: DeviceSetting) => provider;
  expect(await loadOnDevice(AUTO, { warn }, load, gpus)).toEqual({
    loaded: 'cpu',
    reason: 'auto: the GPUs of the system cannot be listed: no sysfs',
  });
  expect(warn).toHaveBeenCalledTimes(1);
});
