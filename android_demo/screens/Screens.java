import android.view.View;
import android.widget.ImageView;
import android.widget.ProgressBar;
import android.widget.TextView;
import com.android.ide.common.rendering.api.ActionBarCallback;
import com.android.ide.common.rendering.api.AdapterBinding;
import com.android.ide.common.rendering.api.AssetRepository;
import com.android.ide.common.rendering.api.HardwareConfig;
import com.android.ide.common.rendering.api.ILayoutLog;
import com.android.ide.common.rendering.api.ILayoutPullParser;
import com.android.ide.common.rendering.api.LayoutlibCallback;
import com.android.ide.common.rendering.api.RenderSession;
import com.android.ide.common.rendering.api.ResourceNamespace;
import com.android.ide.common.rendering.api.ResourceReference;
import com.android.ide.common.rendering.api.ResourceValue;
import com.android.ide.common.rendering.api.SessionParams;
import com.android.ide.common.resources.ResourceMerger;
import com.android.ide.common.resources.ResourceRepositoryUtil;
import com.android.ide.common.resources.ResourceResolver;
import com.android.ide.common.resources.ResourceSet;
import com.android.ide.common.resources.ResourceValueMap;
import com.android.ide.common.resources.TestResourceRepository;
import com.android.ide.common.resources.configuration.FolderConfiguration;
import com.android.layoutlib.bridge.Bridge;
import com.android.resources.Density;
import com.android.resources.ResourceType;
import com.android.resources.ScreenOrientation;
import com.android.resources.ScreenRound;
import com.android.resources.ScreenSize;
import com.android.utils.StdLogger;
import java.io.File;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import javax.imageio.ImageIO;
import javax.xml.parsers.DocumentBuilderFactory;
import org.kxml2.io.KXmlParser;
import org.w3c.dom.Element;
import org.w3c.dom.NodeList;
import org.xmlpull.v1.XmlPullParser;
import org.xmlpull.v1.XmlPullParserException;

/**
 * Draws the demo's layouts by Android's own code for that, which runs on a computer as LayoutLib.
 *
 * <p>Arguments: the folder of LayoutLib's data, that of the system's resources (with build.prop
 * beside it), that of the app's, and then for each screen the layout, the file to write, and {@code
 * id=text} to be set in it (for an ImageView the file of a picture, for a ProgressBar a share of
 * 100; {@code !id} disables a view). Screens are divided by {@code --}. Anything that LayoutLib
 * complains of is an error.
 */
@SuppressWarnings("rawtypes") // those of LayoutLib's own interface
public final class Screens {
    private static final int WIDTH = 720;
    private static final int HEIGHT = 1280;

    private static final List<String> COMPLAINTS = new ArrayList<>();

    private static final ILayoutLog LOG = new ILayoutLog() {
        @Override
        public void warning(String tag, String message, Object cookie, Object data) {
            COMPLAINTS.add(tag + ": " + message);
        }

        @Override
        public void fidelityWarning(String tag, String message, Throwable error, Object cookie,
                Object data) {
            COMPLAINTS.add(tag + ": " + message);
        }

        @Override
        public void error(String tag, String message, Object cookie, Object data) {
            COMPLAINTS.add(tag + ": " + message);
        }

        @Override
        public void error(String tag, String message, Throwable error, Object cookie,
                Object data) {
            Throwable cause = error;
            while (cause != null && cause.getCause() != null) {
                cause = cause.getCause();
            }
            COMPLAINTS.add(tag + ": " + message + " " + cause);
        }
    };

    public static void main(String[] arguments) throws Exception {
        File data = new File(arguments[0]);
        File system = new File(arguments[1]);
        File app = new File(arguments[2]);
        Bridge bridge = new Bridge();
        Properties properties = new Properties();
        properties.load(new FileInputStream(new File(system.getParentFile(), "build.prop")));
        Map<String, String> said = new HashMap<>();
        for (String name : properties.stringPropertyNames()) {
            said.put(name, properties.getProperty(name));
        }
        said.put("debug.choreographer.frametime", "false");
        boolean ready = bridge.init(said, new File(data, "fonts"),
                new File(data, "linux/lib64").getPath(),
                new File(data, "icu/icudt70l.dat").getPath(),
                new String[] {new File(data, "keyboards/Generic.kcm").getPath()},
                enums(new File(system, "values/attrs.xml")), LOG);
        if (!ready) {
            throw new IllegalStateException("LayoutLib does not start: " + COMPLAINTS);
        }
        ResourceNamespace own = ResourceNamespace.RES_AUTO;
        Map<ResourceNamespace, Map<ResourceType, ResourceValueMap>> resources = new HashMap<>();
        resources.put(ResourceNamespace.ANDROID, read(system, ResourceNamespace.ANDROID));
        resources.put(own, read(app, own));
        ResourceResolver resolver = ResourceResolver.create(
                resources, new ResourceReference(own, ResourceType.STYLE, "AppTheme"));
        for (int i = 3; i < arguments.length; i++) {
            File layout = new File(app, "layout/" + arguments[i++] + ".xml");
            File drawn = new File(arguments[i++]);
            Map<String, String> content = new HashMap<>();
            for (; i < arguments.length && !arguments[i].equals("--"); i++) {
                String[] pair = arguments[i].split("=", 2);
                content.put(pair[0], pair.length == 2 ? pair[1] : null);
            }
            draw(bridge, resolver, layout, drawn, content);
        }
        if (!COMPLAINTS.isEmpty()) {
            throw new IllegalStateException("LayoutLib complains: " + COMPLAINTS);
        }
        System.exit(0); // LayoutLib leaves threads behind.
    }

    private static void draw(Bridge bridge, ResourceResolver resolver, File layout, File drawn,
            Map<String, String> content) throws Exception {
        Callback callback = new Callback();
        HardwareConfig phone = new HardwareConfig(WIDTH, HEIGHT, Density.XHIGH, 320, 320,
                ScreenSize.NORMAL, ScreenOrientation.PORTRAIT, ScreenRound.NOTROUND, true);
        SessionParams params = new SessionParams(new Parser(layout),
                SessionParams.RenderingMode.NORMAL, Screens.class, phone, resolver, callback, 24,
                33, LOG);
        params.setAppLabel(content.remove("title"));
        params.setAssetRepository(new Files());
        RenderSession session = bridge.createSession(params);
        if (!session.getResult().isSuccess()) {
            throw new IllegalStateException(
                    session.getResult().getErrorMessage(), session.getResult().getException());
        }
        View root = (View) session.getRootViews().get(0).getViewObject();
        session.execute(new Runnable() {
            @Override
            public void run() {
                for (Map.Entry<String, String> entry : content.entrySet()) {
                    set(root, callback, entry.getKey(), entry.getValue());
                }
            }
        });
        session.render();
        if (!session.getResult().isSuccess()) {
            throw new IllegalStateException(
                    session.getResult().getErrorMessage(), session.getResult().getException());
        }
        ImageIO.write(session.getImage(), "png", drawn);
        session.dispose();
    }

    private static void set(View root, Callback callback, String name, String value) {
        boolean disabled = name.startsWith("!");
        View view = root.findViewById(callback.getOrGenerateResourceId(new ResourceReference(
                ResourceNamespace.RES_AUTO, ResourceType.ID, disabled ? name.substring(1) : name)));
        if (view == null) {
            throw new IllegalArgumentException("no view " + name);
        }
        if (disabled) {
            view.setEnabled(false);
            return;
        }
        view.setVisibility(View.VISIBLE);
        if (view instanceof ImageView) {
            ((ImageView) view).setImageBitmap(android.graphics.BitmapFactory.decodeFile(value));
        } else if (view instanceof ProgressBar) {
            ((ProgressBar) view).setProgress(Integer.parseInt(value));
        } else {
            ((TextView) view).setText(value.replace("\\n", "\n"));
        }
    }

    private static Map<ResourceType, ResourceValueMap> read(File folder, ResourceNamespace space)
            throws Exception {
        ResourceSet set = new ResourceSet(folder.getPath(), space, null, false, null);
        set.setCheckDuplicates(false); // AOSP holds a few, in parts for cars and watches
        set.addSource(folder);
        set.loadFromFiles(new StdLogger(StdLogger.Level.ERROR));
        ResourceMerger merger = new ResourceMerger(0);
        merger.addDataSet(set);
        TestResourceRepository repository = new TestResourceRepository(space);
        repository.update(merger);
        FolderConfiguration phone = FolderConfiguration.getConfigForQualifierString(
                "en-rUS-ldltr-sw360dp-w360dp-h640dp-normal-notlong-notround-port-notnight-xhdpi"
                + "-finger-keyssoft-nokeys-navhidden-nonav-1280x720-v33");
        return ResourceRepositoryUtil.getConfiguredResources(repository, phone).row(space);
    }

    /** What the words of an attribute stand for: {"orientation": {"horizontal": 0, ...}, ...}. */
    private static Map<String, Map<String, Integer>> enums(File file) throws Exception {
        Map<String, Map<String, Integer>> found = new HashMap<>();
        NodeList attributes = DocumentBuilderFactory.newInstance().newDocumentBuilder().parse(file)
                .getElementsByTagName("attr");
        for (int i = 0; i < attributes.getLength(); i++) {
            Element attribute = (Element) attributes.item(i);
            for (String kind : new String[] {"enum", "flag"}) {
                NodeList words = attribute.getElementsByTagName(kind);
                for (int j = 0; j < words.getLength(); j++) {
                    Element word = (Element) words.item(j);
                    found.computeIfAbsent(attribute.getAttribute("name"), name -> new HashMap<>())
                            .put(word.getAttribute("name"),
                                    Long.decode(word.getAttribute("value")).intValue());
                }
            }
        }
        return found;
    }

    /** A parser of a file, as LayoutLib wants it. */
    private static final class Parser extends KXmlParser implements ILayoutPullParser {
        Parser(File file) throws XmlPullParserException, IOException {
            setFeature(XmlPullParser.FEATURE_PROCESS_NAMESPACES, true);
            setInput(new FileInputStream(file), "UTF-8");
        }

        @Override
        public Object getViewCookie() {
            return null;
        }

        @Override
        public ResourceNamespace getLayoutNamespace() {
            return ResourceNamespace.RES_AUTO;
        }
    }

    /** What the system's drawables lie in: plain files. */
    private static final class Files extends AssetRepository {
        @Override
        public boolean isSupported() {
            return true;
        }

        @Override
        public InputStream openNonAsset(int cookie, String path, int mode) throws IOException {
            return new FileInputStream(path);
        }
    }

    /** What Android Studio would tell LayoutLib of the app. */
    private static final class Callback extends LayoutlibCallback {
        private final Map<ResourceReference, Integer> ids = new HashMap<>();
        private final Map<Integer, ResourceReference> names = new HashMap<>();

        @Override
        public Object loadView(String name, Class[] types, Object[] values) throws Exception {
            throw new ClassNotFoundException(name); // the app has no views of its own
        }

        @Override
        public ResourceReference resolveResourceId(int id) {
            return names.get(id);
        }

        @Override
        public int getOrGenerateResourceId(ResourceReference resource) {
            if (!ids.containsKey(resource)) {
                int id = 0x7f000001 + ids.size();
                ids.put(resource, id);
                names.put(id, resource);
            }
            return ids.get(resource);
        }

        @Override
        public ILayoutPullParser getParser(ResourceValue layout) {
            try {
                return new Parser(new File(layout.getValue()));
            } catch (XmlPullParserException | IOException error) {
                throw new IllegalStateException(error);
            }
        }

        @Override
        public AdapterBinding getAdapterBinding(ResourceReference view, Object cookie,
                Object object) {
            return null;
        }

        @Override
        public String getApplicationId() {
            return "org.tfdwd.demo";
        }

        @Override
        public ActionBarCallback getActionBarCallback() {
            return new ActionBarCallback();
        }

        @Override
        public XmlPullParser createXmlParserForPsiFile(String file) {
            return createXmlParserForFile(file);
        }

        @Override
        public XmlPullParser createXmlParserForFile(String file) {
            try {
                return new Parser(new File(file));
            } catch (XmlPullParserException | IOException error) {
                return null;
            }
        }

        @Override
        public XmlPullParser createXmlParser() {
            return new KXmlParser();
        }
    }
}
