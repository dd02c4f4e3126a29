/**
 * Every cache of gateway and workers is filled with ten times what it may hold, each in a process of its own, and must
 * keep no more than its bound. Caches of connections and of slots are tested where they are.
 */
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';

const FILL = fileURLToPath(new URL('fill.mjs', import.meta.url));
const MIB = 1024 * 1024;

async function fill(cache: string): Promise<{ keptBytes: number; rssBytes: number }> {
  const { stdout } = await promisify(execFile)(process.execPath, ['--expose-gc', FILL, cache], { timeout: 240_000 });
  return JSON.parse(stdout);
}

/** The bound of a cache, and what V8 may take besides for its objects; RSS holds garbage that was not collected yet. */
test.each([
  { cache: 'indexes', leastMib: 2, mostMib: 20, rssMib: 160 },
  { cache: 'tooLarge', leastMib: 0.1, mostMib: 8, rssMib: 120 },
  { cache: 'overlays', leastMib: 4, mostMib: 24, rssMib: 200 },
  { cache: 'streams', leastMib: 4, mostMib: 20, rssMib: 160 },
  { cache: 'recentPrompts', leastMib: 3, mostMib: 14, rssMib: 160 },
  { cache: 'rows', leastMib: 4, mostMib: 12, rssMib: 120 },
  { cache: 'sessions', leastMib: 4, mostMib: 12, rssMib: 120 },
  { cache: 'words', leastMib: 6, mostMib: 24, rssMib: 160 },
  { cache: 'leftOutRows', leastMib: 0.1, mostMib: 8, rssMib: 100 },
  { cache: 'acceptance', leastMib: 3, mostMib: 20, rssMib: 140 },
  { cache: 'flights', leastMib: 4, mostMib: 12, rssMib: 160 },
  { cache: 'shares', leastMib: 0.1, mostMib: 3, rssMib: 100 },
])(
  '$cache: ten times as much as it may hold takes no more than $mostMib MiB',
  async (row) => {
    const { keptBytes, rssBytes } = await fill(row.cache);
    expect(keptBytes / MIB).toBeLessThan(row.mostMib);
    expect(keptBytes / MIB).toBeGreaterThan(row.leastMib); // otherwise it was not filled
    expect(rssBytes / MIB).toBeLessThan(row.rssMib);
  },
  300_000,
);
