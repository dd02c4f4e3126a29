/** The settings of an engine: the model, the device and the memory for KV caches. */
import { availableParallelism } from 'node:os';
import { z } from 'zod';
import { flag, whole } from '../process/setting-types.ts';

export const PROVIDERS = ['auto', 'cpu', 'cuda'] as const;

/** The model that a service serves. */
export const MODEL_SETTINGS = {
  model: z.string().min(1).describe('model bundle (see llavacode export)'),
  servedName: z.string().default('').describe("name of the model in the API; the bundle's own when empty"),
};

/** The device that a service computes on. */
export const DEVICE_SETTINGS = {
  provider: z
    .enum(PROVIDERS)
    .default('auto')
    .describe(
      `device to compute on: ${PROVIDERS.join(', ')}; auto means the CPU, and cuda is refused until its results are right`,
    ),
  threads: whole(1, 1024).default(availableParallelism()).describe('threads of the engine'),
};

/** Tokens of a slot where --capacity is not given and the model holds more. */
export const DEFAULT_CAPACITY = 4096;

export const ENGINE_SETTINGS = {
  ...MODEL_SETTINGS,
  ...DEVICE_SETTINGS,
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
      "folder for weights in the form that this CPU computes with, shared by the machine's processes; within the bundle when empty, none when off",
    ),
  slots: whole(1, 4096).default(4).describe('KV slots: sequences held at once'),
  capacity: whole(16, 1_000_000)
    .optional()
    .describe(
      `tokens that one KV slot holds, prompt and output together; what the model holds when not given, at most ${DEFAULT_CAPACITY}`,
    ),
};
