import { describe, expect, test } from 'vitest';
import { strikeEach } from '../../../bench/drills/strikes.ts';
import { scene } from '../../support/drill-scene.ts';

describe('a strike', () => {
  test('strikes hit each worker in turn when it is busy, and count the requests that went on', async () => {
    const struck: string[] = [];
    let replays = 0;
    const { scene: given, done } = scene({ replays: () => replays });
    const verdict = await strikeEach(given, 'decode', async ({ process }) => {
      struck.push(process.name);
      replays += struck.length;
    });
    expect(struck).toEqual(['decode-0', 'decode-1']);
    expect(verdict).toBe('1 + 2 requests went on at the other worker');
    expect(done).toEqual(['burst', 'marked', 'mended', 'burst', 'marked', 'mended']);
  });

  test('a strike that hit no request is a failure', async () => {
    let replays = 0;
    const { scene: given } = scene({ replays: () => replays });
    const strikes = strikeEach(given, 'prefill', async () => {
      replays ||= 3;
    });
    await expect(strikes).rejects.toThrow('3 + 0 requests went on at the other worker: a strike hit no request');
  });
});
