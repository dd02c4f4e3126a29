import fc from 'fast-check';
import { expect, test } from 'vitest';
import { RedactedSample } from '../../../services/gateway/completion/redacted-sample.ts';
import { COMPLETION_DEFAULTS } from '../../../services/gateway/request.ts';

const redacted = (text: string) => new RedactedSample({ ...COMPLETION_DEFAULTS, prompts: [text] }).toJSON().prompt;

test('a redacted sample keeps where things are, and nothing of what they are', () => {
  expect(redacted('def Größe(x1):\n\treturn "日本" # ①😀\u001b')).toBe('xxx Xxxxx(x9):\n\txxxxxx "xx" # 9??');
});

test('redacted samples of two texts of one shape are the same', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary' }), (text) => {
      const once = redacted(text);
      expect(once).toMatch(/^[\x20-\x7e\n\t]*$/);
      expect(once.replace(/[Xx9?]/g, '')).not.toMatch(/[\p{L}\p{N}]/u);
      expect(redacted(once)).toBe(once);
    }),
  );
});
