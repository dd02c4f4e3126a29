/**
 * Where the state of a rollout lies, so that all gateways have the same one, and one that starts anew finds it: beside
 * the index. In Redis it is one key; with an LMDB store, whose gateways share a machine, a file in its folder.
 *
 *   llavacode:1:rollout   JSON of the state; no key where there is no rollout
 *   DIR/rollout.json      the same
 */
import { readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { ServingError } from '../../lib/process/errors.ts';
import type { RedisConnection } from '../../lib/redis/connection.ts';
import { type RolloutState, rolloutState } from './state.ts';

export interface StateStore {
  /** @throws ServingError store_unavailable, store_invalid. */
  read(): Promise<RolloutState | undefined>;
  /** @param state undefined where there is no rollout any more. @throws ServingError store_unavailable. */
  write(state: RolloutState | undefined): Promise<void>;
}

const KEY = 'llavacode:1:rollout';

/** @throws ServingError store_invalid */
function parsed(text: string, where: string): RolloutState {
  try {
    return rolloutState.parse(JSON.parse(text));
  } catch (cause) {
    throw new ServingError('store_invalid', `${where} holds no state of a rollout: remove it`, { cause });
  }
}

export const inRedis = (redis: Pick<RedisConnection, 'run'>): StateStore => ({
  async read() {
    const text = await redis.run((client) => client.get(KEY));
    return text === null ? undefined : parsed(text, KEY);
  },
  async write(state) {
    const text = state && JSON.stringify(state);
    await redis.run<unknown>((client) => (text === undefined ? client.del(KEY) : client.set(KEY, text)));
  },
});

/** @param dir folder of the store. */
export function inFolder(dir: string): StateStore {
  const path = join(dir, 'rollout.json');
  const failed = (cause: Error) => new ServingError('store_unavailable', `${path}: ${cause.message}`, { cause });
  return {
    async read() {
      const text = await readFile(path, 'utf8').catch((error: NodeJS.ErrnoException) => {
        if (error.code !== 'ENOENT') throw failed(error);
      });
      return text === undefined ? undefined : parsed(text, path);
    },
    async write(state) {
      try {
        if (state === undefined) return await rm(path, { force: true });
        await writeFile(`${path}.new`, JSON.stringify(state), { mode: 0o600 });
        await rename(`${path}.new`, path);
      } catch (error) {
        throw failed(error as Error);
      }
    },
  };
}

/** For a gateway without a store: its rollout ends with the process. */
export function inMemory(): StateStore {
  let kept: RolloutState | undefined;
  return {
    read: async () => kept,
    write: async (state) => {
      kept = state;
    },
  };
}
