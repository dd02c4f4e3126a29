import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { loadSession, replaySession } from '../../../bench/typing/session.ts';
import { PACKAGE_ROOT } from '../../../services/lib/process/config.ts';

const SHOP = join(PACKAGE_ROOT, 'examples', 'shop');

describe('a recorded typing session', () => {
  it('a session is replayed into the text that the editor holds after each keystroke', () => {
    const lines = [
      '{"path": "a.py", "line": 1, "note": ""}',
      '{"at_ms": 5, "insert": "ab"}',
      '{"at_ms": 9, "delete": 1}',
    ].join('\n');
    expect(replaySession(lines, 'one\ntwo\n')).toEqual({
      path: 'a.py',
      keystrokes: [
        { atMs: 5, before: 'one\nab', after: 'two\n' },
        { atMs: 9, before: 'one\na', after: 'two\n' },
      ],
    });
  });

  it('the session that ships ends in a method that the file does not have', async () => {
    const { path, keystrokes } = await loadSession(SHOP);
    expect(path).toBe('shop/cart.py');
    expect(keystrokes.at(-1)!.before).toMatch(/self\.coupon_code = other\.coupon_code\n\n$/);
    expect(keystrokes.map(({ atMs }) => atMs)).toEqual(keystrokes.map(({ atMs }) => atMs).toSorted((a, b) => a - b));
  });
});
