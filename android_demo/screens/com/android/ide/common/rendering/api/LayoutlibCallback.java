package com.android.ide.common.rendering.api;

/**
 * The class of this name that LayoutLib of Android 13 calls: that in the newest layoutlib-api on
 * Maven Central lacks getApplicationId.
 */
@SuppressWarnings("rawtypes")
public abstract class LayoutlibCallback implements XmlParserFactory {
    /** Named by LayoutLib's own code. */
    public enum ViewAttribute {
        TEXT,
        IS_CHECKED,
        SRC,
        COLOR
    }

    public abstract Object loadView(String name, Class[] types, Object[] values) throws Exception;

    public abstract ResourceReference resolveResourceId(int id);

    public abstract int getOrGenerateResourceId(ResourceReference resource);

    public abstract ILayoutPullParser getParser(ResourceValue layout);

    public abstract AdapterBinding getAdapterBinding(ResourceReference view, Object cookie,
            Object object);

    public abstract ActionBarCallback getActionBarCallback();

    public abstract String getApplicationId();

    public Object getAdapterItemValue(ResourceReference adapter, Object cookie,
            ResourceReference item, int full, int perType, int parent, int parentPerType,
            ResourceReference view, ViewAttribute attribute, Object otherwise) {
        return null;
    }

    public Object loadClass(String name, Class[] types, Object[] values)
            throws ClassNotFoundException {
        throw new ClassNotFoundException(name);
    }

    public Class<?> findClass(String name) throws ClassNotFoundException {
        throw new ClassNotFoundException(name);
    }

    public <T> T getFlag(SessionParams.Key<T> key) {
        return null;
    }

    public boolean isClassLoaded(String name) {
        return false;
    }

    public ResourceNamespace.Resolver getImplicitNamespaces() {
        return ResourceNamespace.Resolver.EMPTY_RESOLVER;
    }

    public boolean hasLegacyAppCompat() {
        return false;
    }

    public boolean hasAndroidXAppCompat() {
        return false;
    }

    public boolean isResourceNamespacingRequired() {
        return false;
    }

    public boolean shouldUseCustomInflater() {
        return false;
    }

    public void error(String message, String... details) {}

    public void error(String message, Throwable error) {}

    public void error(Throwable error) {}

    public void warn(String message, Throwable error) {}

    public void warn(Throwable error) {}
}
