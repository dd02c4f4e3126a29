/** The encoder of an index on a GPU that computes wrong: the software GPU without a vendor's name, see vulkan.ts. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { openDevice } from '../../../services/lib/engine/device.ts';
import { type Bundle, openBundle } from '../../../services/lib/model/bundle/bundle.ts';
import { openContextEncoder } from '../../../services/lib/rag/encode/device-encoder.ts';
import { smallestBundle } from '../../support/smallest-bundle.ts';
import { useVulkan } from '../../support/vulkan.ts';

const COMPILING_MS = 240_000;

let dir: string;
let bundle: Bundle;
beforeAll(async () => {
  await useVulkan('wrong');
  dir = await mkdtemp(join(tmpdir(), 'llavacode-wrong-encoder-'));
  bundle = await openBundle(await smallestBundle(dir));
}, COMPILING_MS);
afterAll(() => rm(dir, { recursive: true, force: true }));

test(
  'a GPU whose vectors are not the CPU’s fills no index, and is closed again',
  async () => {
    const config = { provider: 'webgpu', providerLibrary: '', deviceId: 0, threads: 1 } as const;
    await expect(openContextEncoder(bundle, config, { warn: () => {} })).rejects.toMatchObject({
      code: 'provider_unavailable',
      message: expect.stringMatching(
        /^WebGPU on llvmpipe .* computes wrong: .* off the CPU's by 0\.0\d+ of its length/,
      ),
    });
    const device = await openDevice({ provider: 'webgpu' });
    expect('bytes' in device && device.bytes).toBe(0);
    await device.dispose();
  },
  COMPILING_MS,
);
