import { expect, test } from 'vitest';
import { keepIndexesWarm } from '../../../services/gateway/context/index-warmer.ts';
import { ServingError } from '../../../services/lib/process/errors.ts';

test('published indexes are loaded before anyone asks for them, one tenant after the other, whatever fails', async () => {
  const published = new Map([['acme', ['acme/a', 'acme/b']]]);
  const looks: string[] = [];
  const warmed: string[] = [];
  const store = {
    repositories: async (tenant: string) => {
      looks.push(tenant);
      if (!published.has(tenant)) throw new ServingError('store_unavailable', 'refused');
      return published.get(tenant)!;
    },
  };
  const retrieval = {
    warm: async (repo: string) => {
      warmed.push(repo);
      if (repo === 'acme/a') throw new ServingError('store_invalid', 'damaged');
    },
  };
  const closing = new AbortController();
  const warming = keepIndexesWarm(store, retrieval, { tenants: ['acme', 'globex'] }, closing.signal);
  await expect.poll(() => warmed).toEqual(['acme/a', 'acme/b']);
  expect(looks[0]).toBe('acme');
  published.set('globex', ['globex/c']);
  await expect.poll(() => warmed.slice(2)).toEqual(['globex/c']); // the others were looked at a moment ago
  published.set('acme', ['acme/a', 'acme/b', 'acme/new']);
  await expect.poll(() => warmed[3]).toBe('acme/new');
  await expect.poll(() => warmed.slice(4), { timeout: 5_000 }).toEqual(expect.arrayContaining(['acme/b', 'globex/c']));
  closing.abort();
  await warming;
  expect(looks.slice(0, 4)).toEqual(['acme', 'globex', 'acme', 'globex']);
});
