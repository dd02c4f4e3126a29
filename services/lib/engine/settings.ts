/** The settings of an engine: the model, the device and the memory for KV caches. */
import { availableParallelism } from 'node:os';
import { z } from 'zod';
import { file, flag, whole } from '../process/setting-types.ts';

const PROVIDERS = ['auto', 'cpu', 'webgpu', 'cuda'] as const;

/** The model that a service serves. */
export const MODEL_SETTINGS = {
  model: z.string().min(1).describe('model bundle (see llavacode export)'),
  requireSigned: file.describe(
    'PEM file of an Ed25519 public key: only a bundle that its owner has signed is served (llavacode bundle sign); any when empty',
  ),
  servedName: z.string().default('').describe("name of the model in the API; the bundle's own when empty"),
};

/** The device that a service computes on. */
export const DEVICE_SETTINGS = {
  provider: z
    .enum(PROVIDERS)
    .default('auto')
    .describe(
      `device to compute on: ${PROVIDERS.join(', ')}; auto takes a GPU if the system lists one and it computes ` +
        'right, else the CPU',
    ),
  providerLibrary: z
    .string()
    .default('')
    .describe('library of another ONNX Runtime provider to compute with, in place of --provider; none when empty'),
  deviceId: whole(0, 255)
    .default(0)
    .describe('which GPU of cuda or of the provider library, counted from 0; webgpu takes the first that Vulkan lists'),
  threads: whole(1, 1024).default(availableParallelism()).describe('threads of the engine'),
};

/** Tokens of a slot where --capacity is not given and the model holds more. */
export const DEFAULT_CAPACITY = 4096;

export const ENGINE_SETTINGS = {
  ...MODEL_SETTINGS,
  ...DEVICE_SETTINGS,
  deviceMemory: whole(1 << 20, Number.MAX_SAFE_INTEGER)
    .optional()
    .describe(
      "bytes of a GPU's memory that the worker may take: what would not fit is refused at start, by arithmetic, and " +
        'nothing is enforced later; not checked when not given',
    ),
  graphCapture: flag
    .default(false)
    .describe(
      'record the decode step of each batch size on the GPU and replay it, for less work of the CPU between kernels ' +
        '(webgpu only)',
    ),
  checkTolerance: whole(1, 1000)
    .default(1)
    .describe(
      'factor on the KL divergences with which a GPU passes its check at start: raise it only for a model that you ' +
        'have seen to be answered right on that GPU',
    ),
  spin: flag.default(false).describe('let idle engine threads spin: faster where the cores are not shared'),
  cpus: z
    .string()
    .default('')
    .refine((text) => text === '' || /^\d+(-\d+)?(,\d+(-\d+)?)*$/.test(text), 'must be cores like 0-3,8')
    .describe('cores that the process keeps to, like 0-3,8 (Linux); any when empty'),
  prepacked: z
    .string()
    .default('')
    .describe(
      'folder for weights in the form that this CPU computes with, and for what the CPU computes in the check of a ' +
        "GPU, shared by the machine's processes; within the bundle when empty, none when off",
    ),
  slots: whole(1, 4096).default(4).describe('KV slots: sequences held at once'),
  capacity: whole(16, 1_000_000)
    .optional()
    .describe(
      'tokens that one KV slot holds, prompt and output together; what the model holds when not given, at most ' +
        DEFAULT_CAPACITY,
    ),
};
