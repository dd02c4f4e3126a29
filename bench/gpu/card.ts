/**
 * What the machine's own tools say about its graphics cards: nvidia-smi for NVIDIA's, the kernel's files for AMD's.
 * Neither is needed; where there is none, the memory of the card stays unknown.
 */
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import { ServingError } from '../../services/lib/process/errors.ts';

export interface Card {
  readonly name: string;
  readonly driver: string;
  /** Bytes of the card's memory, and of those the used ones. */
  readonly memory: number;
  readonly used: number;
}

const NVIDIA = ['name', 'driver_version', 'memory.total', 'memory.used'];
const TIMEOUT_MS = 10_000;

/** Memory that an engine of the model that ships takes of a card at the least, in bytes. */
const LEAST_TAKEN = 2 ** 20;

/**
 * Whether an engine computes on the card that the tools name: then the card's used memory has risen.
 * @param before the card before the engine was opened.
 * @param open the same while it is open.
 * @param device name of the device that the engine computes on, for the error.
 * @returns undefined where the tools do not know the used memory.
 * @throws ServingError provider_unavailable if it has not risen.
 */
export function assertOnCard(before: Card, open: Card | undefined, device: string): boolean | undefined {
  if (open === undefined || !Number.isFinite(before.used) || !Number.isFinite(open.used)) return undefined;
  if (open.used - before.used >= LEAST_TAKEN) return true;
  throw new ServingError(
    'provider_unavailable',
    `${device} does not compute on ${before.name}: ${before.used} bytes of its memory were used before an engine ` +
      `was opened, and ${open.used} while it is open. Install the card's own driver for --provider (llavacode ` +
      'devices names what there is), keep other programs off the card, and run again',
  );
}

/** The first card of the machine; undefined if there is none, or no tool that tells of it. */
export async function firstCard(): Promise<Card | undefined> {
  const args = [`--query-gpu=${NVIDIA.join(',')}`, '--format=csv,noheader,nounits'];
  const { stdout, exitCode } = await execa('nvidia-smi', args, { reject: false, timeout: TIMEOUT_MS });
  return exitCode === 0 && stdout !== '' ? parseNvidia(stdout) : amdCard();
}

/** @param text lines of nvidia-smi like `NVIDIA A100, 550.54, 81920, 4`, in MiB. */
export function parseNvidia(text: string): Card | undefined {
  const [name, driver, total, used] = text
    .split('\n')[0]!
    .split(',')
    .map((field) => field.trim());
  if (name === undefined || driver === undefined || !Number.isFinite(Number(total ?? Number.NaN))) return undefined;
  return { name, driver, memory: Number(total) * 2 ** 20, used: Number(used) * 2 ** 20 };
}

const AMD = '/sys/class/drm';

async function amdCard(): Promise<Card | undefined> {
  for (const entry of await readdir(AMD).catch(() => [])) {
    const bytes = async (what: string) => Number(await readFile(join(AMD, entry, 'device', `mem_info_vram_${what}`)));
    try {
      return { name: 'AMD', driver: 'amdgpu', memory: await bytes('total'), used: await bytes('used') };
    } catch {
      // Not a card of AMD: a card of another maker, or one of a card's outputs.
    }
  }
  return undefined;
}
