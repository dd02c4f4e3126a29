/** Accelerators that are not there: each failure says what is missing, and leaves nothing open. */
import { readdir } from 'node:fs/promises';
import { beforeAll, expect, test } from 'vitest';
import { type DeviceSetting, openDevice } from '../../services/lib/engine/device.ts';
import { libraryPath } from '../../services/lib/engine/ort-api.ts';
import { gpuVendors } from '../../services/lib/engine/provider.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { useVulkan } from '../support/vulkan.ts';

beforeAll(() => useVulkan('none'), 120_000);

async function refusal(setting: DeviceSetting): Promise<ServingError> {
  const error = await openDevice(setting).then(
    () => undefined,
    (failure: unknown) => failure,
  );
  expect(error).toBeInstanceOf(ServingError);
  expect(error).toMatchObject({ code: 'provider_unavailable', message: expect.stringMatching(/use --provider cpu/) });
  return error as ServingError;
}

test('without a Vulkan driver WebGPU is refused with the reason and the remedy, each time', async () => {
  for (let i = 0; i < 2; i++) {
    const { message } = await refusal({ provider: 'webgpu' });
    expect(message).toMatch(
      /^WebGPU cannot be used \(Failed to get a WebGPU adapter: No supported adapters\): install the GPU's Vulkan driver/,
    );
  }
});

// The libraries of CUDA itself may be there; the provider's, which no install of ours brings, is not.
test('without its library CUDA is refused, and the message says how to install it', async () => {
  const { message } = await refusal({ provider: 'cuda', deviceId: 1 });
  expect(message).toMatch(/^CUDA device 1 cannot be used \(Failed to load library .*\): missing: /);
  expect(message).toContain('libonnxruntime_providers_cuda.so (node node_modules/onnxruntime-node/script/install');
});

test('a plugin that is not given, is not there or is not a provider is refused by its path', async () => {
  expect((await refusal({ provider: 'plugin' })).message).toContain('--provider-library is not set');
  const path = '/nowhere/libprovider.so';
  const { message } = await refusal({ provider: 'plugin', providerLibrary: path });
  expect(message).toMatch(/^the provider of \/nowhere\/libprovider\.so cannot be used \(.*cannot open shared object/);
  const other = libraryPath();
  expect((await refusal({ provider: 'plugin', providerLibrary: other })).message).toContain('CreateEpFactories');
});

test('the GPUs that are counted are those that the kernel lists: software devices are not among them', async () => {
  const entries = await readdir('/sys/class/drm').catch(() => []);
  expect(gpuVendors()).toHaveLength(entries.filter((name) => /^card\d+$/.test(name)).length);
});
