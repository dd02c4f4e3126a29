import { describe, expect, test } from 'vitest';
import { readSlowly } from '../../../bench/drills/slow-readers.ts';
import type { Role } from '../../../services/supervisor.ts';
import { scene } from '../../support/drill-scene.ts';
import { gateway } from '../../support/fake-http.ts';

describe('a client that does not read', () => {
  /**
   * Reads an answer late.
   * @param tokens number of tokens that arrive.
   * @param waits whether the gateway ends the request only once it is read.
   */
  async function read(tokens: number, waits: boolean) {
    const url = await gateway((body, _, response) => {
      const { n } = body as { n: number };
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      for (let index = 0; index < n; index++) {
        const choices = [{ index, token_ids: Array.from({ length: tokens }, (_, i) => i) }];
        response.write(`data: ${JSON.stringify({ choices })}\n\n`);
      }
      const timeline = { last_token: waits ? 1e9 : 0 };
      response.end(`data: ${JSON.stringify({ choices: [], timeline })}\n\ndata: [DONE]\n\n`);
    });
    // Each of two decode workers has half of the choices at the first look, and none later.
    let looks = 0;
    const running = (role: Role) => (role === 'decode' && looks++ < 2 ? 6 : 0);
    return readSlowly(scene({ url, running }).scene);
  }

  test('the request of a client that does not read waits for it', async () => {
    expect(await read(650, true)).toMatch(/its request waited, and all of it came when it was read$/);
  });

  test('a request that does not wait for its client, or loses a token, is a failure', async () => {
    await expect(read(650, false)).rejects.toThrow('its request did not wait for it to be read');
    await expect(read(649, true)).rejects.toThrow('the answer that was read at last is not complete');
  });
});
