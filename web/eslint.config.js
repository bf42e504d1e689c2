import tseslint from 'typescript-eslint';

export default tseslint.config(
  { ignores: ['dist/', 'node_modules/', 'eslint.config.js'] },
  ...tseslint.configs.strictTypeChecked,
  {
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      '@typescript-eslint/restrict-template-expressions': ['error', { allowNumber: true }],
      '@typescript-eslint/no-confusing-void-expression': 'off',
      '@typescript-eslint/no-misused-promises': ['error', { checksVoidReturn: { attributes: false, properties: false } }],
      // What the server sends is text, never a piece of the page.
      'no-restricted-syntax': [
        'error',
        { selector: "MemberExpression[property.name=/^(innerHTML|outerHTML|insertAdjacentHTML)$/]", message: 'text is text' },
        { selector: "JSXAttribute[name.name='dangerouslySetInnerHTML']", message: 'text is text' },
        { selector: "CallExpression[callee.name='eval']", message: 'the policy of the page forbids it' },
        { selector: "JSXAttribute[name.name='style'] > Literal", message: 'a style attribute does not pass the policy' },
      ],
    },
  },
  // Plain scripts around converse.js: no types, the same rules about the page.
  { files: ['chat/**'], ...tseslint.configs.disableTypeChecked },
);
